"""InfoCSE (arXiv 2202.13802): sentence embeddings and the annotation of their positives in turns.

Not the InfoCSE of arXiv 2210.06432, which shares only the name.
"""
from jaxlab.systems.infocse import reproduce
from jaxlab.systems.infocse.annotation import annotate, eligible, spherical_kmeans
from jaxlab.systems.infocse.export import save_encoder
from jaxlab.systems.infocse.task import CONFIG_KEYS, check, file_dataset, make_task

__all__ = ['CONFIG_KEYS', 'annotate', 'check', 'eligible', 'file_dataset', 'make_task',
           'reproduce', 'save_encoder', 'spherical_kmeans']
