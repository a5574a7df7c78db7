"""Composition root: the `auricle` command line, settings, and the demo."""
