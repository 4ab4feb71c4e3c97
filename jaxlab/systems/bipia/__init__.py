"""BIPIA (arXiv 2312.14197): indirect prompt injection, measured and defended against."""
from jaxlab.systems.bipia import reproduce
from jaxlab.systems.bipia.experiment import check as check_verb
from jaxlab.systems.bipia.experiment import run as inject
from jaxlab.systems.bipia.task import CONFIG_KEYS, check, make_task

__all__ = ['CONFIG_KEYS', 'check', 'check_verb', 'inject', 'make_task', 'reproduce']
