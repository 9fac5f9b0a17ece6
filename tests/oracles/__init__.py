"""Slow, obvious versions of what the kernels do; one file a topic."""
