"""Nineteen published systems in one JAX codebase, made of pure functions over pytrees."""

__version__ = '0.1.0'
