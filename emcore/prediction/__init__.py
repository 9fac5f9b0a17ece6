"""Predicting volumes of any size: windows read with real context, blended, written section by section."""

from emcore.lazy import face

# The public names and their files stand in __init__.pyi.
__all__, __getattr__, __dir__ = face(__name__)
