"""A picture of what the net does: raw, target and prediction side by side, a row a channel."""

import numpy as np

MOST = 8  # channels in one picture


def preview(image: np.ndarray, target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3): the middle section of (c, z, y, x) arrays; raw | target | prediction for every channel."""
    z = image.shape[1] // 2
    rows = []
    for channel in range(min(MOST, target.shape[0], prediction.shape[0])):
        tiles = [_grey(image[0, z]), _grey(target[channel, z]), _grey(prediction[channel, z])]
        gap = np.full((tiles[0].shape[0], 2), 128, np.uint8)
        rows.append(np.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], 1))
        rows.append(np.full((2, rows[-1].shape[1]), 128, np.uint8))
    return np.repeat(np.concatenate(rows[:-1])[..., None], 3, 2)


def _grey(values: np.ndarray) -> np.ndarray:
    low, high = (float(values.min()), float(values.max())) if values.min() < 0 or values.max() > 1 else (0.0, 1.0)
    return np.round(np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
