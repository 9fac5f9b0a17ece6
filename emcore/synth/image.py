"""The microscope: from darkness to grey values with texture, blur, noise, contrast of each section and defects."""

import numpy as np

from emcore.cache import compiled

CYTOPLASM, MEMBRANE = 164.0, 34.0  # mean grey values before noise
TEXTURE_NM = 40.0  # depth over which the texture of the cytoplasm changes


@compiled(None)
def blur(image, sigma_y, sigma_x):
    """An image smoothed by a Gaussian, its edge repeated beyond it."""
    height, width = image.shape
    between, result = np.zeros_like(image), np.zeros_like(image)
    reach = int(np.ceil(2.5 * sigma_y))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma_y, 1e-6)) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for j in range(height):
        for t in range(-reach, reach + 1):
            weight, row = kernel[t + reach], min(height - 1, max(0, j + t))
            for k in range(width):
                between[j, k] += weight * image[row, k]
    reach = int(np.ceil(2.5 * sigma_x))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma_x, 1e-6)) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    line = np.empty(width + 2 * reach, np.float32)
    for j in range(height):
        line[:reach], line[reach:reach + width], line[reach + width:] = between[j, 0], between[j], between[j, width - 1]
        for t in range(2 * reach + 1):
            weight = kernel[t]
            for k in range(width):
                result[j, k] += weight * line[k + t]
    return result


def _grain(shape: tuple, resolution: tuple, grain_nm: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance whose grains are about grain_nm wide."""
    sigmas = [grain_nm / 2.355 / nm for nm in resolution[1:]]
    steps = [max(1, int(sigma / 1.5)) for sigma in sigmas]  # wide grains are made small and stretched
    small = [length // step + 2 for length, step in zip(shape, steps)]
    noise = blur(rng.standard_normal(small, np.float32), sigmas[0] / steps[0], sigmas[1] / steps[1])
    for axis, (length, step) in enumerate(zip(shape, steps)):
        if step == 1:
            noise = noise[:length] if axis == 0 else noise[:, :length]
            continue
        first, part = np.divmod(np.arange(length), step)
        part = (part / np.float32(step)).astype(np.float32)
        if axis == 0:
            noise = noise[first] * (1 - part)[:, None] + noise[first + 1] * part[:, None]
        else:
            noise = noise[:, first] * (1 - part) + noise[:, first + 1] * part
    return noise / (noise.std() + 1e-6)


def texture(shape: tuple, z_nm: float, resolution: tuple, seed: int) -> np.ndarray:
    """The grain of the cytoplasm at a depth; nearby depths share it, so that thin sections resemble each other."""
    plane, part = divmod(z_nm / TEXTURE_NM, 1.0)
    result = np.zeros(shape, np.float32)
    for k, weight in ((int(plane), 1 - part), (int(plane) + 1, part)):
        if weight == 0:
            continue
        rng = np.random.default_rng([seed, 1, k])
        fine, coarse, cloud = (_grain(shape, resolution, nm, rng) for nm in (11.0, 24.0, 130.0))
        specks = np.maximum(0, coarse - 0.9)  # ribosomes and filaments: dark specks, more of them in some places
        specks *= np.maximum(0.2, 1 + 0.5 * cloud)
        result += np.float32(weight) * (16 * fine + 8 * coarse + 8 * cloud - 60 * specks)
    return result / np.float32(np.hypot(part, 1 - part))


def photograph(dark: np.ndarray, tint: np.ndarray, z: int, resolution: tuple, seed: int, noise: float) -> np.ndarray:
    """One section as uint8: dark (0 cytoplasm .. 1 membrane) over the tint of each neuron, seen by the microscope."""
    rng = np.random.default_rng([seed, 2, z])
    shape = dark.shape
    slab = min(1.0, 12.0 / resolution[0])  # 1 for the thin slices of a block face: softer, steadier, less noise
    patches = 1 + 0.12 * _grain(shape, resolution, 90.0, rng)
    stained = CYTOPLASM + tint + (1 - 0.35 * slab) * texture(shape, z * resolution[0], resolution, seed)
    image = stained + (MEMBRANE + 24 * slab - stained) * np.clip(dark * patches, -0.3, 1.1)
    sigmas = [max(3.5 / nm, 0.45 + 0.5 * slab) for nm in resolution[1:]]
    image = blur(image.astype(np.float32), *sigmas)
    shot = 0.7 * rng.standard_normal(shape, np.float32) + 0.7 * _grain(shape, resolution, 9.0, rng)
    image += noise * (1 - 0.85 * slab) * shot * np.sqrt(np.maximum(image, 20) / 128)
    steady = 1 - 0.6 * slab
    gain, offset = 1 + 0.06 * steady * rng.standard_normal(), 8.0 * steady * rng.standard_normal()
    slope = 5.0 * steady * rng.standard_normal(2)
    tilt = slope[0] * np.linspace(-1, 1, shape[0])[:, None] + slope[1] * np.linspace(-1, 1, shape[1])
    return np.clip((image - 128) * gain + 128 + offset + tilt, 0, 255).astype(np.uint8)
