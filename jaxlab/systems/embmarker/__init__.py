"""EmbMarker (arXiv 2305.10036): a watermark of embedding services that survives model extraction.
"""
from jaxlab.systems.embmarker import attacks, baselines, files, reproduce, warden
from jaxlab.systems.embmarker.task import CONFIG_KEYS, check, file_dataset, make_task
from jaxlab.systems.embmarker.verification import Challenge, Evidence, evidence, verify
from jaxlab.systems.embmarker.watermark import KeySpec, count_triggers, inject, wrap

__all__ = ['CONFIG_KEYS', 'Challenge', 'Evidence', 'KeySpec', 'attacks', 'baselines', 'check',
           'count_triggers', 'evidence', 'file_dataset', 'files', 'inject', 'make_task',
           'reproduce', 'verify', 'warden', 'wrap']
