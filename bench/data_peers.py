"""The augmentation sets of bench/pipelines as MONAI transforms; what MONAI lacks is numpy, as PyTC has it.

A sample is a dict of arrays: image uint8 and label int32, both (1, z, y, x).
"""

import numpy as np
from monai import transforms as monai
from scipy import ndimage

KEYS = ["image", "label"]
MODES = ("bilinear", "nearest")


class Chance:
    """A numpy function of (image, label, random) done with a probability."""

    def __init__(self, probability: float, function, *arguments):
        self.probability, self.function, self.arguments = probability, function, arguments
        self.random = np.random.default_rng(0)

    def __call__(self, sample: dict) -> dict:
        if self.random.random() >= self.probability:
            return sample
        image, label = (np.asarray(sample[key]) for key in KEYS)
        image, label = self.function(image, label, self.random, *self.arguments)
        return {"image": image, "label": label}


class OneOf:
    """One of several, drawn evenly."""

    def __init__(self, *parts: Chance):
        self.parts, self.random = parts, np.random.default_rng(0)

    def __call__(self, sample: dict) -> dict:
        return self.parts[self.random.integers(len(self.parts))](sample)


def misalign(image, label, random, displacement):
    """One section, or all from one on, shifted; what is left empty is 0."""
    depth = image.shape[1]
    section = int(random.integers(1, depth - 1))
    stop = section + 1 if random.random() < 0.5 else depth
    y, x = (int(v) for v in random.integers(-displacement, displacement + 1, 2))
    height, width = image.shape[2:]
    out = []
    for array in (image, label):
        array = array.copy()
        part = array[:, section:stop].copy()
        array[:, section:stop] = 0
        array[:, section:stop, max(0, y):height + min(0, y), max(0, x):width + min(0, x)] = \
            part[:, :, max(0, -y):height - max(0, y), max(0, -x):width - max(0, x)]
        out.append(array)
    return out


def _area(shape, random):
    if random.random() < 0.5:
        return slice(None), slice(None)
    spans = []
    for length in shape:
        side = int(length * random.uniform(0.25, 0.75))
        start = int(random.integers(0, length - side + 1))
        spans.append(slice(start, start + side))
    return tuple(spans)


def miss_sections(image, label, random, least, most):
    image = image.copy()
    number = min(int(random.integers(least, most + 1)), image.shape[1] - 2)
    for z in random.choice(np.arange(1, image.shape[1] - 1), number, replace=False):
        rows, columns = _area(image.shape[2:], random)
        image[:, z, rows, columns] = random.uniform(0, 1)
    return image, label


def lose_section(image, label, random):
    image = image.copy()
    z = int(random.integers(1, image.shape[1] - 1))
    image[:, z] = image[:, z - 1 if random.random() < 0.5 else z + 1]
    return image, label


def blur_sections(image, label, random, least, most):
    image = image.copy()
    for z in random.choice(image.shape[1], int(random.integers(least, most + 1)), replace=False):
        rows, columns = _area(image.shape[2:], random)
        sigma = random.uniform(1, 3)
        soft = ndimage.gaussian_filter(image[0, z], sigma, truncate=5 / sigma)
        image[0, z, rows, columns] = soft[rows, columns]
    return image, label


def miss_part(image, label, random, low, high):
    image = image.copy()
    z = int(random.integers(image.shape[1]))
    sides = [int(n * random.uniform(low, high)) for n in image.shape[2:]]
    y, x = (int(random.integers(0, n - side + 1)) for n, side in zip(image.shape[2:], sides))
    image[:, z, y:y + sides[0], x:x + sides[1]] = 0
    return image, label


def delete_sections(image, label, random, number):
    keep = np.delete(np.arange(image.shape[1]), random.choice(np.arange(1, image.shape[1] - 1), number, replace=False))
    return image[:, keep], label[:, keep]


def grey(image, label, random):
    """Gain, bias and exponent, of the whole patch or of every section."""
    depth = image.shape[1] if random.random() < 0.5 else 1
    gain, bias, power = (random.uniform(-0.5, 0.5, (1, depth, 1, 1)).astype(np.float32) for _ in range(3))
    return np.clip(image * (1 + 0.3 * gain) + 0.3 * bias, 0, 1) ** (2 ** (2 * power)), label


def fold(image, label, random, width):
    """Bands across sections: a line between opposite edges, dilated, filled with the section's mean."""
    image, z = image.copy(), 0
    height, columns = image.shape[2:]
    y, x = np.arange(height)[:, None], np.arange(columns)[None, :]
    while z < image.shape[1]:
        if random.random() < 0.9:
            a, b = random.integers(1, columns - 2, 2)
            line = np.abs(x - np.round(a + (b - a) * y / (height - 1))) < 0.5
            image[0, z][ndimage.binary_dilation(line, iterations=width)] = image[0, z].mean()
            z += 2
        z += 1
    return image, label


def _sections(sample, function):
    """A MONAI transform of two dimensions on all sections alike, as channels."""
    return {key: value[None] for key, value in function({key: sample[key][0] for key in KEYS}).items()}


class Flat:
    def __init__(self, transform):
        self.transform = transform

    def __call__(self, sample: dict) -> dict:
        return _sections(sample, self.transform)


def elastic(probability, sigma, magnitude):
    return monai.Rand3DElasticd(KEYS, sigma, magnitude, prob=probability, mode=MODES, padding_mode="reflection")


def pipelines() -> dict:
    """name -> transform, and the shape that it wants to be given."""
    flips = [monai.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)]
    turn = monai.RandRotate90d(KEYS, prob=0.5, max_k=3, spatial_axes=(1, 2))
    scale = monai.ScaleIntensityd("image")

    def noise(probability, deviation):
        return monai.RandGaussianNoised("image", prob=probability, std=deviation)

    cremi = [scale, *flips[1:], turn, elastic(0.3, (5, 8), (50, 150)), noise(0.3, 0.05),
             monai.RandShiftIntensityd("image", 0.1, prob=0.3), monai.RandAdjustContrastd("image", 0.3, (0.7, 1.4)),
             Chance(0.5, misalign, 16), Chance(0.3, miss_sections, 2, 2), Chance(0.3, blur_sections, 2, 2)]
    snemi = [scale, *flips, turn, elastic(0.7, (4, 8), (8, 16)), noise(0.3, 0.05),
             monai.RandShiftIntensityd("image", 0.2, prob=0.7), monai.RandAdjustContrastd("image", 0.7, (0.5, 1.5)),
             OneOf(Chance(1, misalign, 17), Chance(1, miss_sections, 0, 5), Chance(1, lose_section),
                   Chance(1, blur_sections, 0, 5), Chance(0.2, miss_part, 0.1, 0.25))]
    dbmim = [monai.CastToTyped("image", np.float32),
             monai.ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1, clip=True), *flips,
             monai.RandRotate90d(KEYS, prob=0.75, max_k=3, spatial_axes=(1, 2)),
             monai.RandScaleIntensityd("image", 0.15, prob=0.35), monai.RandShiftIntensityd("image", 0.05, prob=0.35),
             monai.RandAdjustContrastd("image", 0.35, (0.7, 1.5)), noise(0.25, 0.035)]
    bent = Flat(monai.Rand2DElasticd(KEYS, (16, 16), (0.5, 1.0), prob=1.0, rotate_range=np.pi, scale_range=0.2,
                                     mode=MODES, padding_mode="zeros"))
    legacy = [monai.ScaleIntensityd("image"), Chance(1, misalign, 8), Chance(0.5, delete_sections, 2),
              Chance(0.9, fold, 40), Chance(0.75, grey), *flips, bent]
    return {name: monai.Compose(parts) for name, parts in
            (("cremi", cremi), ("snemi", snemi), ("dbmim", dbmim), ("legacy", legacy))}
