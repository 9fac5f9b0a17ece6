"""TOML file -> frozen dataclasses -> `key=value` overrides: typed, checked, and nothing else.

A setting is one dataclass field with a type, a default and one comment that says meaning and unit; the comments
in the source are what `python -m emcore config` prints. Where a table is of one of several kinds, each kind is a
dataclass of its own, and the setting `kind` (of a net: `name`) picks it. A file may start from another one
(base = "other.toml"); there are no profiles and no environment variables.
"""

from emcore.config.reading import from_table, load, read_with_bases, translated
from emcore.config.schema import comments, defaults, differing, of_kind, to_table
from emcore.config.text import describe, short_toml, to_toml
from emcore.reading import read_toml

__all__ = ["comments", "defaults", "describe", "differing", "from_table", "load", "of_kind", "read_toml",
           "read_with_bases", "short_toml", "to_table", "to_toml", "translated"]
