"""A report on what several ways of training did to the same base: one table, three figures."""
import pathlib

import numpy as np

from jaxlab.systems.effopd import update_geometry
from jaxlab.train import figures
from jaxlab.train.sweep import format_table


def report(base, runs, folder, directions=20):
  """Compares runs from one base by their updates.

  Args:
    base: {public checkpoint name: array}, as `decoder_lm.params_to_torch` gives it.
    runs: label -> {step: {name: array}}, checkpoints of the run; the last one is the final.
    folder: where allocation.png, spectrum.png and alignment.png go.
    directions: singular directions that the alignment pairs.

  Returns:
    label -> {'spectrum': {step: Spectrum as a dict}, 'alignment': {step: mean |cos| of paired
    directions with the final update}, 'flat': {step: cosine with the final update}, 'allocation':
    {kind: [L]}, 'embedding': norm, 'thirds': [3]}; means over the attention and MLP matrices.
  """
  folder, results = pathlib.Path(folder), {}
  for label, checkpoints in runs.items():
    updates = {step: update_geometry.update(params, base) for step, params in checkpoints.items()}
    final = updates[max(updates)]
    aligned = {step: [update_geometry.alignment(delta[name], final[name], directions)
                      for name in update_geometry.matrices(final)]
               for step, delta in updates.items()}
    place = update_geometry.allocation(final)
    results[label] = {
        'spectrum': {step: update_geometry.mean_spectrum(delta)._asdict()
                     for step, delta in updates.items()},
        'alignment': {step: float(np.mean([a.paired_abs_cos.mean() for a in rows]))
                      for step, rows in aligned.items()},
        'flat': {step: float(np.mean([a.flat_cos for a in rows]))
                 for step, rows in aligned.items()},
        'allocation': {kind: norms.tolist() for kind, norms in place.layers.items()},
        'embedding': place.embedding, 'thirds': place.thirds.tolist()}
  by_step = lambda values: (list(values), [list(values.values())])
  rank = lambda result: {step: row['effrank'] for step, row in result['spectrum'].items()}
  kinds = {'paired directions': 'alignment', 'whole update': 'flat'}
  figures.compare({f'{label}: {kind}': (np.arange(1, len(norms) + 1), [norms])
                   for label, result in results.items()
                   for kind, norms in result['allocation'].items()},
                  folder / 'allocation.png', xlabel='layer', ylabel='norm of the update')
  figures.compare({label: by_step(rank(result)) for label, result in results.items()},
                  folder / 'spectrum.png', xlabel='step', ylabel='effective rank of the update')
  figures.compare({f'{label}: {what}': by_step(result[name]) for label, result in results.items()
                   for what, name in kinds.items()},
                  folder / 'alignment.png', xlabel='step', ylabel='|cos| with the final update')
  return results


def table(results):
  """The final updates of a `report` as text."""
  rows = []
  for label, result in results.items():
    last = result['spectrum'][max(result['spectrum'])]
    rows.append([label, *(f'{last[name]:.4g}' for name in update_geometry.Spectrum._fields),
                 f'{result["embedding"]:.4g}', ' '.join(f'{x:.2f}' for x in result['thirds'])])
  return format_table(['run', *update_geometry.Spectrum._fields, 'embedding', 'thirds'], rows)
