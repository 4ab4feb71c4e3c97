"""Problems that several systems share; a module each.

A module exposes `make_task(config)`, `check(config)` and `CONFIG_KEYS`.
"""
