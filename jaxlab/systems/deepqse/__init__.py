"""DeepQSE and Efficient-DeepQSE (arXiv 2210.08809): query-aware snippets of pages."""
from jaxlab.systems.deepqse import baselines, formats, metrics, page, reproduce, weights
from jaxlab.systems.deepqse.model import CrossDeepQSE, DeepQSE, listwise_loss, top_k
from jaxlab.systems.deepqse.snippet import extract, make_extractor, open_page, predict_input
from jaxlab.systems.deepqse.task import CONFIG_KEYS, check, make_task
from jaxlab.systems.deepqse.weights import official_weights

__all__ = ['CONFIG_KEYS', 'CrossDeepQSE', 'DeepQSE', 'baselines', 'check', 'extract',
           'formats', 'listwise_loss', 'make_extractor', 'make_task', 'metrics', 'official_weights',
           'open_page', 'page', 'predict_input', 'reproduce', 'top_k', 'weights']
