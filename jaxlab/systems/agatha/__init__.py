"""Agatha (arXiv 2105.04919): a JAX computation that a smart contract can judge.

`consistent.consistent(fn, mode)` is the function with reproducible bits, `play` the protocol.
"""
from jaxlab.systems.agatha import reproduce
from jaxlab.systems.agatha.report import check as check_verb

__all__ = ['check_verb', 'reproduce']
