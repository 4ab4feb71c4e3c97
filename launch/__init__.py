"""Launch scripts, one verb each. Start them as `python -m launch.VERB`; every one knows --help."""
