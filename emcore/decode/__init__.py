"""From predictions to labels by [decode], and the search for its best settings: no torch."""

from emcore.lazy import face

# The public names and their files stand in __init__.pyi.
__all__, __getattr__, __dir__ = face(__name__)
