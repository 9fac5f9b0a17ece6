"""[decode.learned]: fragments merge in two stages, the second by a classifier of what is known of a contact.

First fragments merge by the mean of the nearest and the shortest longer affinities, up to a low threshold, and two
large clusters never. The statistics of all contacts are then pooled onto these clusters; the classifier gives each
contact the probability of a border, once, and clusters merge by the mean of that over all faces between them.
"""

from math import prod
from pathlib import Path

import numpy as np

from emcore.decode.affinities import Box, read_channels, stored_offsets
from emcore.decode.contact_net import LEVELS, ContactNet, read_net
from emcore.decode.features import features
from emcore.errors import InputError
from emcore.segment.affinities import Affinities, stored_table
from emcore.segment.agglomeration import Agglomeration
from emcore.segment.contacts import UNIT, Contacts, first_graph, measure_contacts, pool_contacts, reach_of, step_groups
from emcore.segment.graph import RegionGraph
from emcore.segment.merge_tree import look_up
from emcore.segment.segmentation import Segmentation
from emcore.settings.decode import AffinityDecode, Decode, Learned
from emcore.volumes import Volume

Step = tuple[int, int, int]
# the offsets of the channels, what `step_groups` makes of them, and nm of a voxel
Groups = tuple[list[Step], tuple[list[list[int]], tuple[Step, ...]], tuple[float, ...]]


def learned_segmentation(prediction: Volume, settings: AffinityDecode) -> Segmentation:
    """The clusters of the first stage, their graph by the classifier, and the tree that is made of it.

    The affinity of an edge of this graph is 1 minus the probability of a border, so the tree is cut as any other is.
    """
    affs, _, resolution = read_groups(prediction)
    net = net_for(prediction, settings)
    fragments = fragments_of(affs, settings)
    contacts = measure_contacts(fragments, affs)
    table = first_clusters(contacts, settings.learned.first_threshold, voxels_of(settings.learned, resolution))
    clusters = look_up(fragments, table, out=fragments if fragments.dtype == table.dtype else None)
    graph = learned_graph(pool_contacts(contacts, table), net)
    return Segmentation.of_graph(clusters, graph, nearest(affs), end=settings.end or None)


def net_for(prediction: Volume, settings: AffinityDecode) -> ContactNet:
    """The classifier of decode.learned.file, if it was trained on predictions and fragments like these."""
    _, (_, steps), resolution = groups_of(prediction)
    net = read_net(Path(settings.learned.file))
    net.check(prediction.name, steps, resolution, fragments_named(settings))
    return net


def fragments_named(settings: AffinityDecode) -> str:
    """decode.fragments, and of a watershed its thresholds, which change the fragments as much."""
    if settings.fragments != "watershed":
        return settings.fragments
    return f"watershed (low {settings.low:g}, high {settings.high:g})"


def read_groups(prediction: Volume,
                box: Box | None = None) -> tuple[Affinities, tuple[tuple[int, int, int], ...], tuple[float, ...]]:
    """(affinities of the groups of steps, these steps, nm of a voxel): all that the statistics look at is read.

    box: only the voxels in it.
    """
    offsets, (groups, steps), resolution = groups_of(prediction)
    channels = [channel for group in groups for channel in group]
    values = read_channels(prediction, channels, box or (slice(None),) * 3)
    affs = Affinities(values, [offsets[channel] for channel in channels], table=stored_table(prediction))
    affs.check_values(range(len(channels)), origin=[span.start for span in box] if box else (0, 0, 0))
    return affs, steps, resolution


def groups_of(prediction: Volume) -> Groups:
    """The channels of a prediction, which must say their offsets and its resolution."""
    offsets = stored_offsets(prediction)
    if offsets is None:
        raise InputError(f"{prediction.name} has no attribute offsets, by which decode.learned finds the nearest and "
                         "the longer affinities")
    if prediction.resolution is None:
        raise InputError(f"{prediction.name} does not say its resolution, and decode.learned needs the size of a voxel")
    return offsets, step_groups(offsets), tuple(float(size) for size in prediction.resolution)


def reach_for(prediction: Volume, settings: Decode) -> tuple[int, int, int]:
    """How many voxels before a block, and behind it, decode.learned looks at; none where it is not asked for."""
    if getattr(settings, "learned", None) is None:
        return (0, 0, 0)
    return reach_of(groups_of(prediction)[1][1])


def nearest(affs: Affinities) -> Affinities:
    """The first three channels, which are those of the nearest neighbours."""
    return Affinities(affs.values[:3], affs.offsets[:3], table=affs.table)


def fragments_of(affs: Affinities, settings: AffinityDecode) -> np.ndarray:
    """The fragments that [decode] makes of the nearest neighbours."""
    return Segmentation(nearest(affs), low=settings.low, high=settings.high, fragments=settings.fragments).fragments


def voxels_of(settings: Learned, resolution: tuple[float, ...]) -> int:
    """The voxels of decode.learned.first_size, which is in cubic micrometres."""
    return max(1, round(settings.first_size * 1e9 / prod(resolution)))


def first_clusters(contacts: Contacts, threshold: float, limit: int) -> np.ndarray:
    """The cluster of every fragment after the first merges, uint32, numbered from 1; two above the limit stay two."""
    run = Agglomeration(first_graph(contacts), "mean", limit=limit)
    run.advance(threshold)
    return run.tree().table(threshold)


def learned_graph(contacts: Contacts, net: ContactNet) -> RegionGraph:
    """Clusters that touch, with 1 minus the probability of a border as the affinity of every face between two."""
    joined = joined_of(contacts, net)
    return RegionGraph(contacts.fragments, contacts.u, contacts.v, key=contacts.key, sizes=contacts.sizes,
                       **statistics_of(contacts.count, joined))


def joined_of(contacts: Contacts, net: ContactNet) -> np.ndarray:
    """1 minus the probability of a border for every two that touch, int64, in units of 1 / LEVELS."""
    return LEVELS - net.probabilities(features(contacts)).astype(np.int64)


def statistics_of(count: np.ndarray, joined: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a RegionGraph in which every one of `count` faces has the same affinity."""
    affinity = (joined / LEVELS).astype(np.float32)
    return {"count": count, "sum": count * joined * (int(UNIT) // LEVELS), "max": affinity, "min": affinity}
