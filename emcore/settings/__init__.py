"""Every setting of a run: one file a table of the TOML."""
