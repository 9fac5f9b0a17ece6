"""stand-in until the real one is merged"""
import numpy as np
def write_block(path, values, attributes=None):
    np.save(str(path)+".npy", values); path.write_bytes(b"x")
def is_whole(path, shape, dtype): return path.exists()
def read_block(path, shape, dtype): return np.load(str(path)+".npy")
def join_blocks(*a): pass
