"""Ours and the peers side by side: `python -m bench.kernels`, `python -m bench.metrics`, ..."""
