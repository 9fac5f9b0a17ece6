"""The microscope: from darkness to grey values with texture, blur, noise, contrast of each section and defects."""

import numpy as np

from emcore.metrics.compilation import compiled

CYTOPLASM, MEMBRANE = 164.0, 34.0  # mean grey values before noise
TEXTURE_NM = 30.0  # depth over which the texture of the cytoplasm changes


@compiled(None)
def blur(image, sigma_y, sigma_x):
    """An image smoothed by a Gaussian, its edge repeated beyond it."""
    height, width = image.shape
    between, result = np.empty_like(image), np.empty_like(image)
    for axis in range(2):
        sigma = sigma_y if axis == 0 else sigma_x
        reach = int(np.ceil(2.5 * sigma))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
        kernel = (kernel / kernel.sum()).astype(np.float32)
        for j in range(height):
            for k in range(width):
                total = np.float32(0)
                for t in range(-reach, reach + 1):
                    if axis == 0:
                        total += kernel[t + reach] * image[min(height - 1, max(0, j + t)), k]
                    else:
                        total += kernel[t + reach] * between[j, min(width - 1, max(0, k + t))]
                if axis == 0:
                    between[j, k] = total
                else:
                    result[j, k] = total
    return result


def _grain(shape: tuple, resolution: tuple, grain_nm: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance whose grains are about grain_nm wide."""
    sigma_y, sigma_x = grain_nm / 2.355 / resolution[1], grain_nm / 2.355 / resolution[2]
    noise = blur(rng.standard_normal(shape, np.float32), sigma_y, sigma_x)
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
    image = stained + (MEMBRANE + 36 * slab - stained) * np.clip(dark * patches, -0.3, 1.1)
    sigmas = [max(3.5 / nm, 0.45 + 0.5 * slab) for nm in resolution[1:]]
    image = blur(image.astype(np.float32), *sigmas)
    shot = 0.7 * rng.standard_normal(shape, np.float32) + 0.7 * _grain(shape, resolution, 9.0, rng)
    image += noise * (1 - 0.85 * slab) * shot * np.sqrt(np.maximum(image, 20) / 128)
    steady = 1 - 0.6 * slab
    gain, offset = 1 + 0.06 * steady * rng.standard_normal(), 8.0 * steady * rng.standard_normal()
    slope = 5.0 * steady * rng.standard_normal(2)
    tilt = slope[0] * np.linspace(-1, 1, shape[0])[:, None] + slope[1] * np.linspace(-1, 1, shape[1])
    return np.clip((image - 128) * gain + 128 + offset + tilt, 0, 255).astype(np.uint8)
