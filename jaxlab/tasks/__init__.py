"""Problems that several systems share. A module of this folder exposes `make_task(config)`, `check(config)`, `CONFIG_KEYS`."""
