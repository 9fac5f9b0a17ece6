"""[decode.learned] in blocks: the clusters, probabilities, merges and labels of the whole volume, to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from emcore import config, files
from emcore.blocks.choice import Choice
from emcore.blocks.grid import Grid
from emcore.blocks.learned_work import LearnedWork
from emcore.blocks.run import cut_in_blocks, decode_in_blocks, keep_classifier
from emcore.blocks.tables import BlockParts, read_segmentation
from emcore.blocks.windows import Source
from emcore.decode.affinities import labels_of
from emcore.decode.contact_net import ContactNet, write_net
from emcore.decode.features import feature_names
from emcore.decode.learned import fragments_named, groups_of, learned_segmentation
from emcore.errors import InputError
from emcore.record import of_classifier, of_source
from emcore.segment import Edit, apply_edits
from emcore.segment.affinities import LOGIT_TABLE, TABLE_ATTRIBUTE
from emcore.settings.blocks import Blocks
from emcore.settings.decode import AffinityDecode, Learned
from emcore.volumes import create_volume, open_volume
from tests.test_blocks import events_by, events_of, labels_by, random_grid

RESOLUTION = (12.0, 12.0, 12.0)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These tests write thousands of tiny files, and no machine fails under them."""
    monkeypatch.setattr(files, "flush_to_disk", lambda path: None)


def predicted(path, rng, shape, resolution=RESOLUTION):
    """(path, steps): affinities of the nearest and of one or two longer steps, in any order, type and convention."""
    longer = [tuple(int(step) for step in rng.integers(2, 6, 3)) for _ in range(rng.integers(1, 3))]
    sign = int(rng.choice([-1, 1]))
    offsets = [tuple(sign * step[axis] * (axis == other) for other in range(3))
               for step in [(1, 1, 1), *longer] for axis in range(3)]
    offsets = list(dict.fromkeys(offsets))
    order = rng.permutation(len(offsets)).tolist()
    blotches = np.repeat(np.repeat(np.repeat(rng.normal(0, 2, [len(offsets), *(n // 3 + 1 for n in shape)]), 3, 1), 3,
                                   2), 3, 3)[:, :shape[0], :shape[1], :shape[2]]
    values = 1 / (1 + np.exp(-blotches - rng.normal(1, 1, blotches.shape)))
    kind = str(rng.choice(["uint8", "table", "float16", "float32"]))
    attributes = {"offsets": [list(offsets[place]) for place in order]}
    if kind == "table":
        attributes[TABLE_ATTRIBUTE] = LOGIT_TABLE.tolist()
    values = np.rint(values * 255).astype(np.uint8) if kind in ("uint8", "table") else values.astype(kind)
    with create_volume(f"{path}:main", values.shape, values.dtype, resolution, (0, 0, 0), attributes) as out:
        out[...] = values
    return path


def any_classifier(path, prediction, settings, rng):
    """A classifier with weights that nobody trained, which calls about as many contacts borders as not."""
    steps = groups_of(open_volume(prediction))[1][1]
    count = len(feature_names(len(steps)))
    net = ContactNet(steps, RESOLUTION, fragments_named(settings), ("nothing",), np.zeros(count, np.float32),
                     np.ones(count, np.float32), rng.normal(0, 0.3, (2, count, 8)).astype(np.float32),
                     np.zeros((2, 8), np.float32), rng.normal(0, 0.5, (2, 8)).astype(np.float32),
                     np.zeros(2, np.float32))
    write_net(path, net)


def check_volume(folder, seed, most=16):
    rng = np.random.default_rng(seed)
    shape = tuple(int(length) for length in rng.integers(5, 19, 3))
    path = predicted(folder / f"{seed}_prediction.h5", rng, shape)
    how = str(rng.choice(["faces", "faces-1", "watershed", "minima"]))
    settings = AffinityDecode(fragments=how, low=0.3, high=0.9, threshold=float(rng.choice([0.3, 0.5, 0.7])), end=1.0,
                              learned=Learned(f"{folder}/{seed}.json", float(rng.choice([0.1, 0.3, 0.5])),
                                              float(rng.choice([2e-5, 1e-3]))))
    if rng.random() < 0.4:
        settings = replace(settings, dust_size=6, remove_size=3, boundary=0.3)
    any_classifier(folder / f"{seed}.json", path, settings, rng)
    whole = learned_segmentation(open_volume(path), settings)
    labels, tree, graph = labels_of(whole, settings), whole.tree, whole.graph
    for turn in range(2):
        grid = random_grid(rng, shape, how == "minima", most)
        work = LearnedWork(folder / f"{seed}-{turn}.blocks", grid, Source(str(path), settings), "content",
                           classifier=f"../{seed}.json")
        told = f"seed {seed}, {settings}, {grid}"
        assert np.array_equal(labels_by(work), labels), told
        assert events_by(work) == events_of(tree, settings.end), told
        parts = BlockParts(work)
        assert np.array_equal(parts.fragments()[...], whole.fragments), told
        for name in ("u", "v", "count", "sum", "max", "min", "key", "sizes"):
            assert np.array_equal(getattr(parts.graph(), name), getattr(graph, name)), (name, told)
    return len(graph.u), len(tree.height)


def test_blocks_equal_the_whole(tmp_path):
    edges = [check_volume(tmp_path, seed, most=8) for seed in range(4)]
    assert min(count for count, _ in edges) > 0
    assert sum(merges for _, merges in edges) > 100


@pytest.mark.long
@pytest.mark.parametrize("first", range(100, 200, 20))
def test_a_hundred_volumes_equal_the_whole(tmp_path, first):
    for seed in range(first, first + 20):
        check_volume(tmp_path, seed)


def test_a_block_of_the_whole_volume_is_the_whole(tmp_path):
    """One block is the volume, so that all stages have one task."""
    rng = np.random.default_rng(7)
    path = predicted(tmp_path / "p.h5", rng, (8, 9, 10))
    settings = AffinityDecode(fragments="faces", end=1.0, learned=Learned(f"{tmp_path}/net.json"))
    any_classifier(tmp_path / "net.json", path, settings, rng)
    work = LearnedWork(tmp_path / "b.blocks", Grid((8, 9, 10), (8, 9, 10)), Source(str(path), settings), "content",
                       classifier="../net.json")
    assert np.array_equal(labels_by(work), learned_segmentation(open_volume(path), settings).labels(0.5))


def test_infer_in_blocks_keeps_the_classifier_and_cuts_again(tmp_path):
    """From a stored prediction to labels, another cut and edits; the classifier may be gone by then."""
    rng = np.random.default_rng(8)
    shape = (12, 14, 16)
    path = predicted(tmp_path / "a_prediction.h5", rng, shape)
    settings = AffinityDecode(fragments="faces", threshold=0.5, end=0.9, learned=Learned(f"{tmp_path}/net.json"))
    any_classifier(tmp_path / "net.json", path, settings, rng)
    whole = learned_segmentation(open_volume(path), settings)
    record = {"emcore": "1", "prediction": of_source(path), "decode": config.to_table(settings),
              **of_classifier(settings)}
    choice, blocks = Choice(Grid(shape, (8, 8, 8)), 1, ""), Blocks(size=(8, 8, 8), engine="local", workers=1)
    out = decode_in_blocks(path, settings, tmp_path / "a_labels.h5", choice, blocks, record)
    assert np.array_equal(open_volume(out, "labels")[...], whole.labels(0.5))
    (tmp_path / "net.json").unlink()
    again = cut_in_blocks(out, 0.3, tmp_path / "a_labels_0.3.h5", blocks)
    assert np.array_equal(open_volume(again, "labels")[...], whole.labels(0.3))
    segmentation = read_segmentation(out)
    assert np.array_equal(segmentation.tree.height, whole.tree.height[whole.tree.height < 0.9])
    places = [tuple(int(at) for at in np.argwhere(whole.labels(0.5) == label)[0]) for label in (1, 2)]
    joined = cut_in_blocks(out, None, tmp_path / "a_labels_edits.h5", blocks, [Edit("join", *places)])
    assert np.array_equal(open_volume(joined, "labels")[...],
                          apply_edits(whole, whole.labels(0.5), 0.5, [Edit("join", *places)]))


def test_other_sizes_of_a_voxel_are_decoded_anew(tmp_path):
    """The voxels of a prediction without a record are its digest; offsets and resolution are attributes beside them."""
    shape, labels = (9, 10, 11), {}
    settings = AffinityDecode(fragments="faces", threshold=0.5, learned=Learned(f"{tmp_path}/net.json", 0.6, 2e-5))
    for size in (12.0, 12.2):
        rng = np.random.default_rng(10)
        path = predicted(tmp_path / "a_prediction.h5", rng, shape, (size, size, size))
        if not labels:
            any_classifier(tmp_path / "net.json", path, settings, rng)
        record = {"emcore": "1", "prediction": of_source(path), "decode": config.to_table(settings),
                  **of_classifier(settings)}
        out = decode_in_blocks(path, settings, tmp_path / "a_labels.h5", Choice(Grid(shape, (9, 5, 11)), 1, ""),
                               Blocks(size=(9, 5, 11), engine="local", workers=1), record)
        labels[size] = [entry.name for entry in out.with_suffix(".blocks").iterdir()]
    contacts, clusters = ([{name for name in found if name.startswith(stage)} for found in labels.values()]
                          for stage in ("contacts-", "clusters-"))
    assert contacts[0] != contacts[1]
    assert clusters[0] != clusters[1]


def test_a_classifier_that_changes_meanwhile_is_told(tmp_path):
    (tmp_path / "net.json").write_text("new")
    with pytest.raises(InputError, match="changed while"):
        keep_classifier(tmp_path / "copy.json", str(tmp_path / "net.json"), "old")
    assert not (tmp_path / "copy.json").exists()


def test_a_classifier_for_other_predictions_is_refused_before_anything_is_written(tmp_path):
    rng = np.random.default_rng(9)
    path = predicted(tmp_path / "a_prediction.h5", rng, (8, 9, 10))
    settings = AffinityDecode(fragments="faces", learned=Learned(f"{tmp_path}/net.json"))
    any_classifier(tmp_path / "net.json", path, replace(settings, fragments="faces-1"), rng)
    record = {"prediction": of_source(path), **of_classifier(settings)}
    with pytest.raises(InputError, match=r"trained on decode\.fragments faces-1"):
        decode_in_blocks(path, settings, tmp_path / "a_labels.h5", Choice(Grid((8, 9, 10), (4, 9, 10)), 1, ""),
                         Blocks(size=(4, 9, 10)), record)
    assert not (tmp_path / "a_labels.blocks").exists()
