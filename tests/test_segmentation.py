"""Segmentation: each step once, stored and read, and why a voxel has its label, against a slow replay of the merges."""

import re

import numpy as np
import pytest

from emcore import segment
from emcore.__main__ import TOOLS
from emcore.blocks.explain import main
from emcore.decode.labels import decode
from emcore.errors import InputError
from emcore.segment import segmentation as module
from emcore.segment.graph import SUM_SCALE
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume


def volume(seed=0, shape=(5, 12, 12), levels=9):
    """Affinities with few values, so that heights are tied, and low enough for many fragments."""
    random = np.random.default_rng(seed)
    return (random.integers(0, levels, (3, *shape)) / (levels - 1)).astype(np.float32)


@pytest.mark.parametrize("ties", ["canonical", "waterz"])
@pytest.mark.parametrize("statistic", ["mean", "max", "min", "aff50_his256", "aff85"])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_agglomeration_that_pauses_makes_the_merges_of_one_that_does_not(ties, statistic, threads):
    for seed in range(8):
        affs = volume(seed)
        fragments = segment.watershed(affs, 0.2, 0.9, ties=ties)
        graph = segment.region_graph(fragments, affs, statistic=statistic, extras=("running_mean",))
        whole = segment.agglomerate(graph, statistic, ties=ties, threads=threads)
        run, at = segment.Agglomeration(graph, statistic, ties), 0
        for threshold in (0.2, 0.45, 0.45, 0.7, None):
            run.advance(threshold, threads)
            tree = run.tree()
            assert len(tree.a) >= at
            at = len(tree.a)
            for name in ("a", "b", "height"):
                np.testing.assert_array_equal(getattr(tree, name), getattr(whole, name)[:at])
            apart = segment.Agglomeration(graph, statistic, ties)
            apart.advance(threshold, 1)
            for one, other in zip(run.remaining(), apart.remaining()):
                np.testing.assert_array_equal(one, other)
        assert at == len(whole.a)


def test_every_step_is_made_once_and_dust_agglomerates_once(monkeypatch):
    made = []

    def counted(name):
        function = getattr(module, name)
        return lambda *given, **options: made.append(name) or function(*given, **options)

    for name in ("watershed", "graph_of", "agglomerate", "Agglomeration"):
        monkeypatch.setattr(module, name, counted(name))
    whole = segment.Segmentation(volume(), low=0.2, high=0.9)
    assert made == []
    first = whole.labels(0.4, dust_size=5)
    assert made == ["watershed", "graph_of", "Agglomeration"]
    plain = whole.labels(0.4)
    _ = whole.tree, whole.graph, whole.fragments, whole.sizes
    assert made == ["watershed", "graph_of", "Agglomeration"]
    np.testing.assert_array_equal(whole.labels(0.4, dust_size=5), first)
    np.testing.assert_array_equal(plain, segment.segment(volume(), 0.4, low=0.2, high=0.9))


@pytest.mark.parametrize("statistic, ties", [("mean", "canonical"), ("aff50_his256_all", "canonical"),
                                             ("mean", "waterz")])
def test_a_segmentation_read_from_its_file_gives_the_same_labels_and_explanations(tmp_path, statistic, ties):
    affs, after = volume(3), {"dust_size": 6, "remove_size": 3, "dust_affinity": 0.1}
    whole = segment.Segmentation(affs, low=0.2, high=0.9, statistic=statistic, ties=ties)
    wanted = whole.labels(0.4, **after)
    whole.write(tmp_path / "stored.h5", (40, 4, 4))
    again = segment.Segmentation.read(tmp_path / "stored.h5")
    np.testing.assert_array_equal(again.labels(0.4, **after), wanted)
    np.testing.assert_array_equal(again.labels(0.6), whole.labels(0.6))
    if ties == "waterz":
        assert again.tree.key is None
    else:
        np.testing.assert_array_equal(again.tree.key, whole.tree.key)
    assert again.explain((2, 3, 4), 0.5, (4, 9, 9)) == whole.explain((2, 3, 4), 0.5, (4, 9, 9))
    with pytest.raises(InputError, match="this takes the affinities"):
        again.labels(0.4, boundary=0.2)
    with_affs = segment.Segmentation.read(tmp_path / "stored.h5", affs)
    np.testing.assert_array_equal(with_affs.labels(0.4, boundary=0.2), whole.labels(0.4, boundary=0.2))


def replayed(whole, threshold, start):
    """What came to the cluster of a fragment with each merge below the threshold, by sets of fragments."""
    tree, graph, clusters, found = whole.tree, whole.graph, {}, []
    for height, a, b in zip(tree.height, tree.a.tolist(), tree.b.tolist()):
        if not height < tree.height.dtype.type(threshold):
            break
        one, other = clusters.get(a, {a}), clusters.get(b, {b})
        if start in one | other:
            mine, theirs = (one, other) if start in one else (other, one)
            between = [edge for edge, (u, v) in enumerate(zip(graph.u.tolist(), graph.v.tolist()))
                       if (u in mine and v in theirs) or (u in theirs and v in mine)]
            sizes = [int((whole.fragments == fragment).sum()) for fragment in theirs]
            found.append((float(height), min(theirs), len(theirs), sum(sizes), int(graph.count[between].sum())))
        for fragment in one | other:
            clusters[fragment] = one | other
    return found, clusters.get(start, {start})


def test_an_explanation_is_the_replay_of_the_merges():
    chains = joined = apart = 0
    for seed in range(12):
        whole = segment.Segmentation(volume(seed, (4, 9, 9)), low=0.3, high=0.95)
        random = np.random.default_rng(seed)
        for threshold in (0.3, 0.5, 0.8):
            one, other = (tuple(random.integers(0, whole.fragments.shape).tolist()) for _ in range(2))
            found = whole.explain(one, threshold, other)
            fragment = int(whole.fragments[one])
            assert (found.place.voxel, found.place.fragment) == (one, fragment)
            if fragment == 0:
                continue
            merges, cluster = replayed(whole, threshold, fragment)
            assert [tuple(merge) for merge in found.merges] == merges
            labels = whole.labels(threshold)
            assert found.place.label == labels[one]
            assert (found.fragments, found.voxels) == (len(cluster), int((labels == labels[one]).sum()))
            chains += len(merges)
            there = int(whole.fragments[other])
            if there in (0, fragment):
                continue
            if there in cluster:
                joined += 1
                check_path(whole, found, fragment, there)
            else:
                apart += 1
                check_apart(whole, found, labels, one, other)
            assert "None" not in str(found)
    assert min(chains, joined, apart) > 3


def check_path(whole, found, start, end):
    at, tree = start, whole.tree
    edges = {frozenset(pair): float(height) for *pair, height in zip(tree.a.tolist(), tree.b.tolist(), tree.height)}
    for step in found.path:
        assert step.first == at
        assert edges[frozenset((step.first, step.second))] == step.height
        at = step.second
    assert at == end
    # the weakest link is the merge that joined the two: below its height they are apart, above it they are one
    weakest = found.weakest.height
    for threshold, together in ((weakest, False), (np.nextafter(weakest, 2), True)):
        table = tree.table(min(1.0, threshold))
        assert (table[start] == table[end]) is np.bool_(together)


def check_apart(whole, found, labels, one, other):
    assert found.path == ()
    if found.joined_at is not None:
        table = whole.tree.table(min(1.0, float(np.nextafter(found.joined_at, 2))))
        assert table[found.place.fragment] == table[found.other.fragment]
        below = whole.tree.table(found.joined_at)
        assert below[found.place.fragment] != below[found.other.fragment]
    ends = whole.tree.table(found.threshold)[np.stack([whole.graph.u, whole.graph.v])]
    pair = {int(labels[one]), int(labels[other])}
    between = [edge for edge in range(ends.shape[1]) if set(ends[:, edge].tolist()) == pair]
    if not between:
        assert found.contact is None
        return
    count = int(whole.graph.count[between].sum())
    assert found.contact.contacts == count
    assert found.contact.mean == pytest.approx(whole.graph.sum[between].sum() / (count * SUM_SCALE))
    assert found.contact.largest == whole.graph.max[between].max()


@pytest.fixture
def labels(tmp_path):
    """Labels as infer.py stores them: two bodies with a bridge, and a speck of dust."""
    affs = np.zeros((3, 4, 12, 20), np.float32)
    affs[:, :, :, :8] = 0.95
    affs[:, :, :, 12:] = 0.9
    affs[2, 2, 5, 8:13] = 0.45  # the bridge
    affs[0, 0], affs[1, :, 0], affs[2, :, :, 0] = 0, 0, 0
    with create_volume(f"{tmp_path}/a_prediction.h5:main", affs.shape, "float32", (40, 4, 4), (0, 0, 0),
                       {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}) as out:
        out[...] = affs
    settings = AffinityDecode(threshold=0.5, low=0.1, high=0.9, dust_size=0, remove_size=10)
    return decode(open_volume(tmp_path / "a_prediction.h5"), settings, tmp_path / "a_labels.h5")


def test_the_command_explains_a_voxel_and_the_link_between_two(labels, capsys):
    assert TOOLS["explain"][0] == "emcore.blocks.explain"
    assert main([str(labels), "1", "5", "3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^voxel 1 5 3: fragment \d+, \d+ voxels\nlabel \d+ at threshold 0.5: ", text)
    assert main([str(labels), "1", "5", "3", "--other", "1", "5", "16"]) == 0
    text = capsys.readouterr().out
    assert "they are not joined at threshold 0.5" in text
    assert "they join from thresholds above 0.910000 on (mean 0.090000)" in text
    assert main([str(labels), "1", "5", "3", "--other", "1", "5", "16", "--threshold", "0.95"]) == 0
    text = capsys.readouterr().out
    assert "the weakest link between them is the merge of fragments" in text
    assert "at mean 0.090000" in text


def test_what_cannot_be_explained_is_one_sentence(labels, tmp_path):
    for arguments, sentence in (
            (["9", "0", "0"], r"three whole numbers z, y, x within \(4, 12, 20\); got \[9, 0, 0\]"),
            (["0", "0", "0", "--threshold", "2"], "threshold must be 0 to 1")):
        with pytest.raises(InputError, match=sentence):
            main([str(labels), *arguments])
    with create_volume(f"{tmp_path}/plain.h5:labels", (2, 3, 4), "uint32") as out:
        out[...] = 1
    with pytest.raises(InputError, match="has no merge tree"):
        main([f"{tmp_path}/plain.h5", "0", "0", "0"])
