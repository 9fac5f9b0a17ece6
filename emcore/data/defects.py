"""What happens to intensities, one sample (c, z, y, x) in 0..1 at a time, on its device; images only.

Every function returns a new tensor. `random` draws the parameters, `generator` the fields on the device.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emcore.settings.augment import (
    Blur,
    Contrast,
    CutBlur,
    CutNoise,
    Fold,
    Gamma,
    LostSection,
    MissingPart,
    MissingSection,
    Noise,
    Shift,
    Stripes,
)


def count(sections: int | tuple[int, int], random: np.random.Generator, most: int) -> int:
    wanted = sections if isinstance(sections, int) else int(random.integers(sections[0], sections[1] + 1))
    return max(0, min(wanted, most))


def inner_sections(depth: int, sections: int | tuple[int, int], random: np.random.Generator) -> list[int]:
    """Distinct sections, never the first or the last."""
    number = count(sections, random, depth - 2)
    return [] if number == 0 else sorted(random.choice(np.arange(1, depth - 1), number, replace=False).tolist())


def rectangle(size: tuple[int, int], part: tuple[float, float], random: np.random.Generator) -> tuple[slice, slice]:
    """A rectangle whose height and width are shares of the section's, anywhere in it."""
    spans = []
    for length in size:
        side = max(1, min(length, round(random.uniform(*part) * length)))
        start = int(random.integers(0, length - side + 1))
        spans.append(slice(start, start + side))
    return tuple(spans)


def area(image: Tensor, full: float, part: tuple[float, float], random: np.random.Generator) -> tuple[slice, slice]:
    if random.random() < full:
        return slice(None), slice(None)
    return rectangle(tuple(image.shape[2:]), part, random)


def noise(image: Tensor, step: Noise, random: np.random.Generator, generator: torch.Generator) -> Tensor:
    bounds = step.deviation if isinstance(step.deviation, tuple) else (0.0, step.deviation)
    out = torch.empty_like(image).normal_(0, random.uniform(*bounds), generator=generator).add_(image)
    return out.clamp_(0, 1) if step.clip else out


def shift(image: Tensor, step: Shift, random: np.random.Generator, generator: torch.Generator) -> Tensor:
    return image + random.uniform(-step.offset, step.offset)


def gamma(image: Tensor, step: Gamma, random: np.random.Generator, generator: torch.Generator) -> Tensor:
    low, high = image.amin(), image.amax()
    spread = (high - low).clamp_min(1e-6)
    return ((image - low) / spread).pow(random.uniform(*step.range)) * spread + low


def contrast(image: Tensor, step: Contrast, random: np.random.Generator, generator: torch.Generator) -> Tensor:
    depth = image.shape[1] if random.random() < step.section_ratio else 1
    gain, bias = random.uniform(*step.gain, depth), random.uniform(*step.bias, depth)
    power = np.exp(random.uniform(math.log(step.gamma[0]), math.log(step.gamma[1]), depth))
    gain, bias, power = (torch.as_tensor(v, dtype=image.dtype, device=image.device).view(1, -1, 1, 1)
                         for v in (gain, bias, power))
    out = image * gain + bias
    if step.clip:
        out = out.clamp(0, 1)
    return out if step.gamma == (1.0, 1.0) else out.clamp_min(1e-4).pow(power)


def missing_section(image: Tensor, step: MissingSection, random: np.random.Generator, generator) -> Tensor:
    out = image.clone()
    for z in inner_sections(image.shape[1], step.sections, random):
        rows, columns = area(image, step.full, step.part, random)
        out[:, z, rows, columns] = random.uniform(*step.fill)
    return out


def lost_section(image: Tensor, step: LostSection, random: np.random.Generator, generator) -> Tensor:
    out = image.clone()
    for z in inner_sections(image.shape[1], step.sections, random):
        if step.by == "mean":
            out[:, z] = (image[:, z - 1] + image[:, z + 1]) / 2
        else:
            back = step.by == "previous" or (step.by == "random" and random.random() < 0.5)
            out[:, z] = image[:, z - 1 if back else z + 1]
    return out


def missing_part(image: Tensor, step: MissingPart, random: np.random.Generator, generator) -> Tensor:
    out = image.clone()
    rows, columns = rectangle(tuple(image.shape[2:]), step.size, random)
    out[:, int(random.integers(0, image.shape[1])), rows, columns] = 0
    return out


def fold(image: Tensor, step: Fold, random: np.random.Generator, generator) -> Tensor:
    """A band around a straight line between opposite edges, filled with the section's mean."""
    out = image.clone()
    depth, height, width = image.shape[1:]
    y = torch.arange(height, device=image.device)[:, None]
    x = torch.arange(width, device=image.device)[None, :]
    z = 0
    while z < depth:
        if random.random() < step.probability:
            if random.random() < 0.5:  # from the upper to the lower edge
                a, b = (int(random.integers(1, max(2, width - 2))) for _ in range(2))
                across, along, slope, start = x, y, (b - a) / max(1, height - 1), a
            else:
                a, b = (int(random.integers(1, max(2, height - 2))) for _ in range(2))
                across, along, slope, start = y, x, (b - a) / max(1, width - 1), a
            # steps along one axis at a time: the distance that repeated dilation by a cross measures
            distance = (across - start - slope * along).abs() / max(1.0, abs(slope))
            out[:, z] = torch.where(distance <= step.width, image[:, z].mean(), image[:, z])
            z += 3
        else:
            z += 1
    return out


def blur(image: Tensor, step: Blur, random: np.random.Generator, generator) -> Tensor:
    out = image.clone()
    depth, (height, width) = image.shape[1], image.shape[2:]
    number = count(step.sections, random, depth)
    half = min(step.kernel // 2, height - 1, width - 1)
    for z in sorted(random.choice(depth, number, replace=False).tolist()) if number else []:
        kernel = _kernel(step, half, random).to(image)
        padded = functional.pad(image[:, z, None], (half,) * 4, mode="reflect")
        if kernel.dim() == 1:
            soft = functional.conv2d(padded, kernel.view(1, 1, -1, 1))
            soft = functional.conv2d(soft, kernel.view(1, 1, 1, -1))
        else:
            soft = functional.conv2d(padded, kernel[None, None])
        rows, columns = area(image, step.full, step.part, random)
        out[:, z, rows, columns] = soft[:, 0, rows, columns]
    return out


def _kernel(step: Blur, half: int, random: np.random.Generator) -> Tensor:
    """A Gaussian (one dimension, used twice), or a line through the middle of a square for motion."""
    steps = torch.arange(-half, half + 1, dtype=torch.float32)
    if not step.motion:
        bell = torch.exp(-steps.square() / (2 * random.uniform(*step.sigma) ** 2))
        return bell / bell.sum()
    angle = random.uniform(0, math.pi)
    line = (steps[:, None] * math.cos(angle) - steps[None, :] * math.sin(angle)).abs() <= 0.5
    within = steps[:, None].square() + steps[None, :].square() <= (half + 0.5) ** 2
    kernel = (line & within).float()
    return kernel / kernel.sum()


def _box(image: Tensor, size: tuple[float, float], random: np.random.Generator) -> tuple[slice, ...]:
    spans = [slice(None)]
    for length in image.shape[1:]:
        side = max(1, min(length, round(random.uniform(*size) * length)))
        start = int(random.integers(0, length - side + 1))
        spans.append(slice(start, start + side))
    return tuple(spans)


def cut_noise(image: Tensor, step: CutNoise, random: np.random.Generator, generator: torch.Generator) -> Tensor:
    out, box = image.clone(), _box(image, step.size, random)
    scale = random.uniform(*step.scale)
    field = torch.empty_like(out[box]).uniform_(-scale, scale, generator=generator)
    out[box] = (out[box] + field).clamp(0, 1)
    return out


def cut_blur(image: Tensor, step: CutBlur, random: np.random.Generator, generator) -> Tensor:
    out, box = image.clone(), _box(image, step.size, random)
    piece, factor = out[box], random.uniform(*step.factor)
    small = [max(1, round(length / factor)) for length in piece.shape[2:]]
    coarse = functional.interpolate(piece.transpose(0, 1), size=small, mode="area")
    out[box] = functional.interpolate(coarse, size=piece.shape[2:], mode="bilinear").transpose(0, 1)
    return out


def stripes(image: Tensor, step: Stripes, random: np.random.Generator, generator) -> Tensor:
    out = image.clone()
    height, width = image.shape[2:]
    y = torch.arange(height, device=image.device)[:, None]
    x = torch.arange(width, device=image.device)[None, :]
    for _ in range(int(random.integers(step.count[0], step.count[1] + 1))):
        angle = math.radians(random.uniform(-step.degrees, step.degrees))
        start, thick = random.uniform(0, height), int(random.integers(step.thickness[0], step.thickness[1] + 1))
        line = ((y - start) * math.cos(angle) - (x - width / 2) * math.sin(angle)).abs() < thick / 2
        factor = random.uniform(*step.intensity)
        z = int(random.integers(0, image.shape[1]))
        out[:, z] = torch.where(line, out[:, z] * factor, out[:, z])
    return out


# in the order in which they are done; names are those of [augment]
INTENSITY = {"noise": noise, "shift": shift, "gamma": gamma, "contrast": contrast}
DEFECTS = {"lost_section": lost_section, "missing_section": missing_section, "blur": blur, "missing_part": missing_part,
           "fold": fold, "cut_noise": cut_noise, "cut_blur": cut_blur, "stripes": stripes}
