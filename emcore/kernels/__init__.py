"""Compiled kernels; their sources are kernels/*.pyx, their Python faces emcore.segment."""
