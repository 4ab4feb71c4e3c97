"""DebiasedRec (arXiv 2104.07360): news recommendation that knows how each article was shown."""
from jaxlab.systems.debiasedrec import reproduce
from jaxlab.systems.debiasedrec.task import CONFIG_KEYS, check, file_dataset, make_task

__all__ = ['CONFIG_KEYS', 'check', 'file_dataset', 'make_task', 'reproduce']
