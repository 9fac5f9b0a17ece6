"""From a seed to a volume and its truth: growth, surfaces, synapses, organelles, microscope, in this order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from emcore.errors import InputError
from emcore.synth.growth import grow
from emcore.synth.image import photograph
from emcore.synth.organelles import FAR, by_section, draw, make_organelles, nodes_nm
from emcore.synth.surface import separate, slice_offsets, vote
from emcore.synth.synapses import Synapse, make_synapses
from emcore.threads import run_parallel, thread_count

SMALLEST_NM = 200.0


@dataclass(frozen=True)
class Defects:
    """What goes wrong between the tissue and the file."""

    missing_sections: int = 0  # black in raw, with their labels kept
    misaligned_sections: int = 0  # places where sections jump: half of them one section only, half all that follow
    largest_shift: int = 12  # voxels in y and x; raw and labels move together, so nothing is lost but continuity
    noise: float = 17.0  # standard deviation in grey values


@dataclass(frozen=True)
class Tissue:
    """A volume and its truth; all arrays are (z, y, x) of one shape."""

    raw: np.ndarray  # uint8
    neuron_ids: np.ndarray  # uint32, 1..n in every voxel: membranes and gaps belong to the neuron they bound
    clefts: np.ndarray  # uint32, 0 outside, 1..m
    polarity: np.ndarray  # uint32, 0 outside, synapse n is 2n - 1 on its pre- and 2n on its post-synaptic side
    mitochondria: np.ndarray  # uint32, 0 outside, 1..k
    membranes: np.ndarray  # uint8, share of the voxel that is neuron membrane, before blur and noise (255 = all)
    synapses: list[Synapse]  # an entry for each synapse and each of its partners
    resolution: tuple[float, float, float]  # nm, z y x
    missing: tuple[int, ...]  # sections that are black in raw
    shifts: np.ndarray  # (z, 2) voxels in y and x that each section was moved by


def synthesize(shape: tuple[int, int, int], resolution: tuple[float, float, float] = (30.0, 6.0, 6.0), seed: int = 0, *,
               neurites: int | None = None, somata: int | None = None, synapses: int | None = None,
               partners: int = 1, defects: Defects = Defects(), threads: int | None = None,
               told: Callable[[str], None] = lambda step: None) -> Tissue:
    """Tissue of `shape` voxels; the same arguments give the same bytes, whatever the number of threads.

    Without misaligned sections every neuron id is one object connected through faces of voxels. `neurites` are grown
    (default 16 a cubic micron), `somata` placed (default 1 for 30 cubic microns) and at most `synapses` made (default
    1.6 a cubic micron), each with one to `partners` postsynaptic neurons. `told` is called with the name of every step
    that begins.
    """
    shape, resolution = _checked(shape, resolution, defects, neurites=neurites, somata=somata, synapses=synapses,
                                 seed=seed)
    if partners < 1:
        raise InputError(f"partners must be 1 or more neurons behind a synapse; got {partners}")
    margin = defects.largest_shift if defects.misaligned_sections else 0
    whole = (shape[0], shape[1] + 2 * margin, shape[2] + 2 * margin)
    extent = tuple(n * nm for n, nm in zip(whole, resolution))
    microns = float(np.prod(extent)) / 1e9
    neurites = max(8, round(16 * microns)) if neurites is None else neurites
    somata = round(microns / 30) if somata is None else somata
    synapses = max(1, round(1.6 * microns)) if synapses is None else synapses
    threads = thread_count(threads)
    rng = np.random.default_rng(seed)

    told("growing neurites")
    growth = grow(extent, neurites, somata, rng, threads)
    told("giving voxels to neurites")
    ids, membranes = vote(growth, whole, resolution, threads)
    separate(ids, membranes, resolution, threads)
    told("placing synapses and organelles")
    nodes = nodes_nm(growth, threads)
    found, clefts, polarity, stain = make_synapses(ids, nodes, resolution, synapses, rng, partners)
    organelles = make_organelles(growth, nodes, ids, resolution, found, rng)
    start, which = by_section(organelles, whole[0], resolution[0])
    tint = rng.standard_normal(int(ids.max()) + 1) * 12
    tint[rng.random(len(tint)) < 0.06] -= 30  # a few cells are stained darker than the others
    tint = tint.astype(np.float32)
    missing, shifts = _defects(defects, whole[0], rng)

    told("taking micrographs")
    raw, mitochondria = np.empty(shape, np.uint8), np.zeros(whole, np.uint32)
    offsets = slice_offsets(resolution[0])

    def one(z: int) -> None:
        dark = np.maximum(membranes[z], stain[z]).astype(np.float32) / 255
        draw(which[start[z]:start[z + 1]], organelles, ids[z], (z + 0.5) * resolution[0] + offsets,
             np.array(resolution), dark, mitochondria[z], np.full((len(offsets), *whole[1:]), FAR, np.float32))
        image = photograph(dark, tint[ids[z]], z, resolution, seed, defects.noise)
        raw[z] = 0 if z in missing else _moved(image, shifts[z], margin)
    run_parallel(one, [(z,) for z in range(whole[0])], threads)

    if not margin:
        return Tissue(raw, ids, clefts, polarity, mitochondria, membranes, found, resolution, missing, shifts)
    labels = [np.stack([_moved(volume[z], shifts[z], margin) for z in range(shape[0])])
              for volume in (ids, clefts, polarity, mitochondria, membranes)]
    rename = np.cumsum(np.bincount(labels[0].ravel(), minlength=int(ids.max()) + 1) > 0).astype(np.uint32)
    labels[0] = rename[labels[0]]
    moved = [_moved_synapse(synapse, shifts, margin, shape, resolution, rename) for synapse in found]
    return Tissue(raw, *labels, [synapse for synapse in moved if synapse], resolution, missing, shifts)


def _moved(section: np.ndarray, shift: np.ndarray, margin: int) -> np.ndarray:
    y, x = margin + int(shift[0]), margin + int(shift[1])
    return section[y:section.shape[0] - 2 * margin + y, x:section.shape[1] - 2 * margin + x]


def _moved_synapse(synapse: Synapse, shifts: np.ndarray, margin: int, shape: tuple, resolution: tuple,
                   rename: np.ndarray) -> Synapse | None:
    """The synapse where its sections went, None if one of its sites left the volume."""
    places = []
    for place in (synapse.place, synapse.pre_site, synapse.post_site):
        section = min(shape[0] - 1, int(place[0] / resolution[0] + 0.5))
        y = place[1] - (margin + shifts[section, 0]) * resolution[1]
        x = place[2] - (margin + shifts[section, 1]) * resolution[2]
        places.append((place[0], float(y), float(x)))
    for _, y, x in places[1:]:
        if not (0 <= y <= (shape[1] - 1) * resolution[1] and 0 <= x <= (shape[2] - 1) * resolution[2]):
            return None
    return Synapse(synapse.number, int(rename[synapse.pre]), int(rename[synapse.post]), *places)


def _defects(defects: Defects, sections: int, rng: np.random.Generator) -> tuple[tuple[int, ...], np.ndarray]:
    """The missing sections and the shift of every section."""
    inner = np.arange(1, sections - 1)
    missing = tuple(sorted(rng.choice(inner, defects.missing_sections, replace=False).tolist()))
    shifts = np.zeros((sections, 2), np.int64)
    for number, z in enumerate(rng.choice(inner, defects.misaligned_sections, replace=False)):
        jump = rng.integers(-defects.largest_shift, defects.largest_shift + 1, 2)
        shifts[z:z + 1 if number % 2 == 0 else sections] += jump
    return missing, np.clip(shifts, -defects.largest_shift, defects.largest_shift)


def _checked(shape: Sequence[int], resolution: Sequence[float], defects: Defects, **counts: int | None,
             ) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """shape and resolution as tuples of plain numbers; InputError if no tissue can be made of them."""
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise InputError(f"shape must be three positive whole numbers of voxels (z, y, x); got {tuple(shape)}")
    if len(resolution) != 3 or not all(1 <= nm <= 100 for nm in resolution):
        raise InputError(f"resolution must be three numbers of nm (z, y, x) from 1 to 100; got {tuple(resolution)}")
    shape, resolution = tuple(int(n) for n in shape), tuple(float(nm) for nm in resolution)
    extent = tuple(n * nm for n, nm in zip(shape, resolution))
    if min(extent) < SMALLEST_NM:
        raise InputError(f"shape {shape} at {resolution} nm is {extent} nm; neurites need at least "
                         f"{SMALLEST_NM:.0f} nm along each axis")
    if np.prod(shape, dtype=float) > 2**31:
        raise InputError(f"shape {shape} is more than the 2**31 voxels of one volume; make several")
    inner = max(0, shape[0] - 2)
    for name in ("missing_sections", "misaligned_sections"):
        count = getattr(defects, name)
        if not 0 <= count <= inner:
            raise InputError(f"{name} must be 0 to {inner} for {shape[0]} sections (the outer two stay); got {count}")
    if not 0 <= defects.largest_shift <= min(shape[1:]) // 2:
        raise InputError(f"largest_shift must be 0 to {min(shape[1:]) // 2} voxels for shape {shape}; "
                         f"got {defects.largest_shift}")
    for name, count in (counts | {"noise": defects.noise}).items():
        if count is not None and count < 0:
            raise InputError(f"{name} must be 0 or more; got {count}")
    return shape, resolution
