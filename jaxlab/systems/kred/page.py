"""A page that shows which entities made the vector of a news, and by which neighbours."""
import html

import jax
import jax.numpy as jnp
import numpy as np

_STYLE = """body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
section{border-top:1px solid #ccc;padding:.6em 0}h2{font-size:1.05em;margin:.2em 0}
table{border-collapse:collapse}td,th{padding:.1em .8em .1em 0;text-align:left;vertical-align:top}
.bar{background:#2a6;height:.8em;display:inline-block}small{color:#666}"""


def read_attention(model, params, tables, news):
  """[{'news', 'slots': [{'entity', 'weight', 'position', 'frequency', 'neighbours': [(entity,
  relation, weight), ...]}, ...]}, ...] of news numbers; heaviest first, equal neighbours merged.

  Args:
    model: model.KRED.
    params: its parameters.
    tables: see `model`.
    news: numbers of the news.
  """
  ids = jnp.asarray(news, jnp.int32)
  program = jax.jit(lambda params, tables: model.apply({'params': params}, tables, ids,
                                                       method='encode')[1])
  weights = jax.device_get(program(params, tables))
  found = []
  for row, number in enumerate(news):
    slots = []
    for slot, entity in enumerate(np.asarray(tables['news']['entities'][number]).tolist()):
      if not entity:
        continue
      around = {}
      for tail, relation, weight in zip(
          np.asarray(tables['graph']['tails'][entity]).tolist(),
          np.asarray(tables['graph']['relations'][entity]).tolist(),
          weights['neighbour'][row, slot].tolist()):
        if tail:
          around[tail, relation] = around.get((tail, relation), 0.0) + weight
      slots.append({
          'entity': entity, 'weight': float(weights['entity'][row, slot]),
          'position': int(tables['news']['position'][number, slot]),
          'frequency': int(tables['news']['frequency'][number, slot]),
          'neighbours': sorted(((*pair, weight) for pair, weight in around.items()),
                               key=lambda one: -one[-1])})
    found.append({'news': number, 'slots': sorted(slots, key=lambda one: -one['weight'])})
  return found


def write(path, attention, text, neighbours=4):
  """Writes the page.

  Args:
    path: .html file.
    attention: as `read_attention` gives it.
    text: data.Text of the same data.
    neighbours: shown of each entity.
  """
  label = lambda entity: html.escape(text.labels.get(text.names[entity - 1],
                                                     text.names[entity - 1]))
  parts = []
  for one in attention:
    rows = []
    for slot in one['slots']:
      around = ', '.join(f'{label(tail)} <small>{weight:.2f}</small>'
                         for tail, _, weight in slot['neighbours'][:neighbours])
      rows.append(
          f'<tr><td>{label(slot["entity"])} <small>{text.names[slot["entity"] - 1]}</small></td>'
          f'<td><span class="bar" style="width:{100 * slot["weight"]:.1f}px"></span> '
          f'{slot["weight"]:.3f}</td><td>{"title" if slot["position"] == 1 else "abstract"}, '
          f'{slot["frequency"]}x</td><td>{around}</td></tr>')
    table = ('<table><tr><th>entity</th><th>weight</th><th>where</th><th>neighbours</th></tr>'
             f'{"".join(rows)}</table>') if rows else '<p>no entity of the graph</p>'
    parts.append(f'<section><h2>{html.escape(text.titles[one["news"] - 1])}</h2><small>'
                 f'{html.escape(text.news[one["news"] - 1])}</small>{table}</section>')
  with open(path, 'w', encoding='utf-8') as file:
    file.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>KRED: entities'
               f'</title><style>{_STYLE}</style><h1>Which entities mattered</h1>{"".join(parts)}'
               '</html>\n')
