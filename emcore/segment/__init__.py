"""From affinities and probability maps to labels: Python faces of the kernels, no torch."""

from emcore.lazy import face

# The public names and their files stand in __init__.pyi.
__all__, __getattr__, __dir__ = face(__name__)
