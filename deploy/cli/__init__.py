"""The `auricle` command line, one file a command group."""
