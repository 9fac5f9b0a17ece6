"""What fills a neurite and fools a membrane detector: mitochondria, vesicles, ER, microtubules, nuclei.

Every organelle is a polyline in nm with a radius, a kind and the neuron that it belongs to and is drawn in.
"""

from typing import NamedTuple

import numpy as np

from emcore.cache import compiled
from emcore.synth.growth import GRID_NM, PAD, Growth, rooms
from emcore.synth.surface import DEPTH_NM
from emcore.synth.synapses import Synapse

MITOCHONDRION, VESICLE, DENSE_VESICLE, TUBULE, MICROTUBULE, NUCLEUS = range(6)
WIDEST = 18.0  # grid voxels: beyond this, a tube is as wide as an organelle can be
FAR = np.float32(1e9)


class Organelles(NamedTuple):
    """Polylines: organelle n has the points first[n] .. first[n + 1]."""

    kind: np.ndarray  # (n,) uint8
    owner: np.ndarray  # (n,) uint32 neuron id
    radius: np.ndarray  # (n,) float32 nm
    grain: np.ndarray  # (n, 4) float32: direction across the cristae, and their contrast
    first: np.ndarray  # (n + 1,) int64
    points: np.ndarray  # (m, 3) float32 nm


def nodes_nm(growth: Growth, threads: int) -> np.ndarray:
    """Places of all tube nodes in nm from the corner of the volume, and how far the next neuron is from there."""
    nodes = growth.nodes.astype(np.float64) * GRID_NM
    nodes[:, :3] += (0.5 - PAD) * GRID_NM
    nodes[:, 3] = rooms(growth, WIDEST, threads) * GRID_NM
    return nodes


def make_organelles(growth: Growth, nodes: np.ndarray, ids: np.ndarray, resolution: tuple, synapses: list[Synapse],
                    rng: np.random.Generator) -> Organelles:
    """Organelles along the tubes, in the cell bodies and before the synapses."""
    shape, scale = ids.shape, np.array(resolution)
    kinds, owners, radii, grains, lines = [], [], [], [], []

    def add(kind: int, line: np.ndarray, radius: float, owner: int | None = None) -> None:
        if owner is None:
            at = np.floor(line / scale).astype(int)
            at = at[((at >= 0) & (at < shape)).all(1)]
            if not len(at):
                return
            owner = ids[tuple(at[len(at) // 2])]
        way = rng.standard_normal(3)
        kinds.append(kind)
        owners.append(owner)
        radii.append(radius)
        grains.append((*(way / np.linalg.norm(way)), rng.uniform(0.1, 0.5)))
        lines.append(line)

    # a tube is a run of nodes that follow one another in one neuron
    jump = np.linalg.norm(np.diff(nodes[:, :3], axis=0), axis=1) > 6 * GRID_NM
    turn = np.flatnonzero(jump | (np.diff(growth.neuron[growth.node_piece]) != 0)) + 1
    for tube in np.split(np.arange(len(nodes)), turn):
        places, width = nodes[tube, :3], nodes[tube, 3]
        arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(places, axis=0), axis=1))])
        at = rng.exponential(500.0)
        while at < arc[-1]:  # mitochondria where the tube is wide enough
            length = rng.uniform(300, 1500)
            start = int(np.searchsorted(arc, at))
            narrow = (arc[start:] > at + length) | (width[start:] < max(75.0, 0.6 * width[start]))
            part = np.arange(start, start + (int(narrow.argmax()) if narrow.any() else len(narrow)))
            if len(part) > 2:
                room = width[part].min()
                radius = min(room * rng.uniform(0.55, 0.82), rng.uniform(110, 240))
                aside = rng.standard_normal(3)
                line = places[part] + aside / np.linalg.norm(aside) * max(0.0, room - radius - 25) * rng.random()
                add(MITOCHONDRION, _smooth(line), radius)
                at = arc[part[-1]]
            at += 60 + rng.exponential(400.0)
        for start in range(0, len(tube), 8):
            part = slice(start, min(start + 9, len(tube)))
            room = width[part].min()
            if room < 55:
                continue
            for _ in range(rng.poisson(min(6.0, (room / 75) ** 1.5))):
                aside = rng.standard_normal(3)
                add(MICROTUBULE, places[part] + aside / np.linalg.norm(aside) * (room - 35) * rng.random(), 12.0)
            for _ in range(rng.poisson(0.8 * min(4.0, room / 100))):
                radius = rng.uniform(16, 34)
                aside = rng.standard_normal((2, 3))
                wander = np.linspace(0, 1, len(width[part]))[:, None]
                offset = aside[0] * wander + aside[1] * (1 - wander)
                offset /= np.linalg.norm(offset, axis=1, keepdims=True) + 1e-9
                add(TUBULE, places[part] + offset * max(0.0, room - radius - 20) * rng.random(), radius)
            full = room > 100 and rng.random() < 0.1  # a swelling packed with vesicles
            for _ in range(rng.poisson((5.0 if full else 0.9) * (room / 90) ** 2)):
                aside = rng.standard_normal(3) * room * 0.5
                add(DENSE_VESICLE if rng.random() < 0.1 else VESICLE, places[part][:1] + aside, rng.uniform(17, 32))
    for z, y, x, radius in growth.somata:
        centre = (np.array([z, y, x], float) + 0.5 - PAD) * GRID_NM
        outer, inner = radius * GRID_NM, radius * GRID_NM * 0.68
        add(NUCLEUS, centre[None], inner, None if (centre >= 0).all() and (centre < shape * scale).all() else 0)
        if owners and kinds[-1] == NUCLEUS:
            owners[-1] = _owner_near(ids, centre, scale, outer)
        for kind, count, low, high in ((MITOCHONDRION, 60, 80, 140), (TUBULE, 260, 18, 40), (VESICLE, 120, 18, 30)):
            for _ in range(count):
                steps = rng.standard_normal((1 if kind == VESICLE else 12, 3))
                line = rng.standard_normal(3) + np.cumsum(steps * 0.05, 0)
                line *= (inner + rng.uniform(0.3, 0.75) * (outer - inner)) / np.linalg.norm(line, axis=1, keepdims=True)
                add(kind, centre + line, rng.uniform(low, high))
    for synapse in {synapse.number: synapse for synapse in synapses}.values():  # the vesicle cloud
        away = np.array(synapse.pre_site) - synapse.place
        middle = np.array(synapse.pre_site) + away / (np.linalg.norm(away) + 1e-9) * 50
        for _ in range(rng.integers(250, 500)):  # those that would lie in a neighbour are not drawn
            place = middle + rng.standard_normal(3) * 110
            at = np.floor(place / scale).astype(int)
            if (at >= 0).all() and (at < shape).all() and ids[tuple(at)] == synapse.pre:
                add(VESICLE, place[None], rng.uniform(17, 23), synapse.pre)
    first = np.cumsum([0] + [len(line) for line in lines])
    return Organelles(np.array(kinds, np.uint8), np.array(owners, np.uint32), np.array(radii, np.float32),
                      np.array(grains, np.float32).reshape(-1, 4), first.astype(np.int64),
                      np.concatenate([*lines, np.zeros((0, 3))]).astype(np.float32))


def _smooth(line: np.ndarray) -> np.ndarray:
    padded = np.concatenate([line[:1], line, line[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _owner_near(ids: np.ndarray, centre: np.ndarray, scale: np.ndarray, radius: float) -> int:
    """The neuron at the voxel of the volume that is nearest to `centre`."""
    at = np.clip(np.floor(centre / scale).astype(int), 0, np.array(ids.shape) - 1)
    return int(ids[tuple(at)]) if np.linalg.norm((at + 0.5) * scale - centre) < radius else 0


def by_section(organelles: Organelles, sections: int, thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """The organelles that reach into each section, in order: section z has which[start[z] : start[z + 1]]."""
    if not len(organelles.kind):
        return np.zeros(sections + 1, np.int64), np.zeros(0, np.int64)
    reach = organelles.radius + DEPTH_NM / 2
    low = np.minimum.reduceat(organelles.points[:, 0], organelles.first[:-1]) - reach
    high = np.maximum.reduceat(organelles.points[:, 0], organelles.first[:-1]) + reach
    begin = np.clip(np.floor(low / thickness).astype(np.int64), 0, sections)
    end = np.clip(np.floor(high / thickness).astype(np.int64) + 1, 0, sections)
    count = np.maximum(0, end - begin)
    which = np.repeat(np.arange(len(count)), count)
    section = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(begin, count)
    order = np.argsort(section, kind="stable")
    return np.searchsorted(section[order], np.arange(sections + 1)), which[order]


@compiled(None)
def _bump(distance, middle, width):
    away = (distance - middle) / width
    return np.exp(-away * away)


@compiled(None)
def _shade(kind, inside, z, y, x, grain):
    """Darkness of an organelle `inside` nm below its surface; 0 is cytoplasm, 1 is a membrane."""
    if kind == MITOCHONDRION:
        across = z * grain[0] + y * grain[1] + x * grain[2]
        along = z * grain[1] - y * grain[2] + x * grain[0]
        crista = np.sin(across * 0.115 + 1.6 * np.sin(along * 0.017)) ** 8 * min(1.0, max(0.0, (inside - 18.0) / 8.0))
        return 0.5 + 0.4 * _bump(inside, 4.0, 5.0) + 0.35 * _bump(inside, 19.0, 5.0) + grain[3] * crista
    if kind == VESICLE:
        return -0.15 + 1.15 * _bump(inside, 5.0, 5.0)
    if kind == DENSE_VESICLE:
        return 0.65
    if kind == TUBULE:
        return -0.1 + 0.9 * _bump(inside, 5.0, 5.0)
    if kind == MICROTUBULE:
        return 0.45
    blotch = np.sin(z * 0.013 + 2 * np.sin(y * 0.011)) * np.sin(x * 0.012 + 2 * np.sin(z * 0.009 + y * 0.004))
    return (0.12 + 0.16 * max(0.0, blotch) + 0.7 * _bump(inside, 6.0, 6.0) + 0.6 * _bump(inside, 36.0, 6.0)
            + 0.2 * _bump(inside, 52.0, 14.0))


@compiled(None)
def draw(which, organelles, ids, depths, resolution, dark, mitochondria, distance):
    """Draw the organelles `which` over the darkness of one section, and number the mitochondria.

    depths: z in nm of the optical slices. distance: scratch, (slices, y, x) float32 full of FAR, and left so.
    """
    kind, owner, radius, grain, first, points = organelles
    slices, height, width = distance.shape
    for n in which:
        r = radius[n]
        top, bottom, left, right = height, 0, width, 0
        for s in range(slices):
            for at in range(first[n], max(first[n] + 1, first[n + 1] - 1)):
                a, b = points[at], points[min(at + 1, first[n + 1] - 1)]
                if depths[s] < min(a[0], b[0]) - r or depths[s] > max(a[0], b[0]) + r:
                    continue
                span_z, span_y, span_x = b[0] - a[0], b[1] - a[1], b[2] - a[2]
                squared = span_z * span_z + span_y * span_y + span_x * span_x + np.float32(1e-6)
                j0 = max(0, int((min(a[1], b[1]) - r) / resolution[1]))
                j1 = min(height, int((max(a[1], b[1]) + r) / resolution[1]) + 1)
                k0 = max(0, int((min(a[2], b[2]) - r) / resolution[2]))
                k1 = min(width, int((max(a[2], b[2]) + r) / resolution[2]) + 1)
                top, bottom, left, right = min(top, j0), max(bottom, j1), min(left, k0), max(right, k1)
                off_z = depths[s] - a[0]
                for j in range(j0, j1):
                    off_y = (j + 0.5) * resolution[1] - a[1]
                    for k in range(k0, k1):
                        off_x = (k + 0.5) * resolution[2] - a[2]
                        t = (off_z * span_z + off_y * span_y + off_x * span_x) / squared
                        t = min(1.0, max(0.0, t))
                        away = ((off_z - t * span_z) ** 2 + (off_y - t * span_y) ** 2 + (off_x - t * span_x) ** 2)
                        if away < distance[s, j, k]:
                            distance[s, j, k] = away
        for j in range(top, bottom):
            for k in range(left, right):
                shade, covered = 0.0, 0
                for s in range(slices):
                    away = distance[s, j, k]
                    distance[s, j, k] = FAR
                    if away < r * r:
                        covered += 1
                        shade += _shade(kind[n], r - np.sqrt(away), depths[s], (j + 0.5) * resolution[1],
                                        (k + 0.5) * resolution[2], grain[n])
                if covered == 0 or ids[j, k] != owner[n] or mitochondria[j, k] != 0:
                    continue
                under = dark[j, k]
                drawn = (shade + under * (slices - covered)) / slices
                # what is already dark stays dark: an organelle never opens a membrane
                dark[j, k] = max(drawn, under) if under > 0.35 else drawn
                if kind[n] == MITOCHONDRION and 2 * covered > slices:
                    mitochondria[j, k] = n + 1
