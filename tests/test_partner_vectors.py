"""Synapses of many partners: tissue that has them, vectors that point from their presynaptic side, and the way back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from emcore import config, metrics, segment
from emcore.data.sources import check_vectors, open_source
from emcore.data.targets import IGNORE, make_targets, partners
from emcore.data.warps import Plan, move
from emcore.decode.labels import decode
from emcore.errors import InputError
from emcore.prediction import predict
from emcore.segment import partner_instances
from emcore.segment.synapses import VECTOR_NM, _nearest_place
from emcore.settings import Settings
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.decode import PartnersDecode
from emcore.settings.predict import Activation, Infer, Views
from emcore.settings.target import PartnersTarget, PolarityTarget
from emcore.synth import synthesize
from emcore.volumes import create_volume, open_volume

ROOT = Path(__file__).resolve().parent.parent
RESOLUTION = (30.0, 8.0, 6.0)


@pytest.fixture(scope="module")
def tissue():
    return synthesize((16, 128, 128), (40.0, 10.0, 10.0), 1, synapses=40, partners=4)


def random_labels(seed, shape=(7, 9, 11), synapses=4):
    """Boxes of sides of synapses, some of which have lost the other side."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int64)
    for number in random.permutation(2 * synapses) + 1:
        low = [int(random.integers(0, length - 1)) for length in shape]
        labels[tuple(slice(at, at + int(random.integers(1, 5))) for at in low)] = number
    labels[random.random(shape) < 0.05] = IGNORE
    return torch.from_numpy(labels)


def slow_vectors(labels, resolution):
    """The definition, voxel by voxel."""
    values, valid = np.zeros((3, *labels.shape)), np.zeros((3, *labels.shape), bool)
    for at in np.ndindex(labels.shape):
        if labels[at] > 0 and labels[at] % 2 == 0:
            before = np.argwhere(labels == labels[at] - 1)
            if len(before):
                values[(slice(None), *at)] = (np.array(at) - before.mean(0)) * resolution / VECTOR_NM
                valid[(slice(None), *at)] = True
    return values, valid


def test_vectors_equal_a_loop_over_voxels_in_anisotropic_tissue():
    counted = 0
    for seed in range(30):
        labels = torch.stack([random_labels(seed), random_labels(seed + 100)])
        values, valid = partners(labels, RESOLUTION)
        for label, value, counts in zip(labels.numpy(), values.numpy(), valid.numpy()):
            wanted, where = slow_vectors(label, RESOLUTION)
            assert np.array_equal(counts, where)
            np.testing.assert_allclose(value, wanted, atol=1e-6)
            counted += where[0].sum()
    assert counted > 300


@pytest.mark.parametrize("plan", [
    Plan(flips=(0,)), Plan(flips=(1,)), Plan(flips=(0, 2)), Plan(turns=1), Plan(turns=3, flips=(2,)),
    Plan(order=(1, 2, 0)), Plan(order=(0, 2, 1), flips=(0, 1))], ids=str)
def test_vectors_turn_with_the_patch(plan):
    """What the net learns of a moved patch is the moved vector: its parts change places and signs as the axes do."""
    size = 8
    labels = torch.zeros((size,) * 3, dtype=torch.int64)
    labels[2:4, 2:5, 3:5], labels[4:6, 3:6, 1:6] = 1, 2
    where = torch.from_numpy(np.indices((size,) * 3))  # the source of each voxel after the move
    moved = move({"label": labels[None], "source": where}, plan, (size,) * 3, torch.Generator())
    source = moved["source"].numpy()
    axes = np.stack([source[:, 1, 0, 0] - source[:, 0, 0, 0], source[:, 0, 1, 0] - source[:, 0, 0, 0],
                     source[:, 0, 0, 1] - source[:, 0, 0, 0]], 1)  # a step of the moved patch as one of the source
    before, _ = make_targets(labels[None], [PartnersTarget()], (10.0,) * 3)
    after, valid = make_targets(moved["label"], [PartnersTarget()], (10.0,) * 3)
    turned = np.einsum("ij,jzyx->izyx", axes, after[0].numpy())
    assert valid.any()
    assert abs(before).max() > 0.1
    np.testing.assert_allclose(turned, before[0].numpy()[:, source[0], source[1], source[2]], atol=1e-6)


class Slopes(nn.Module):
    """A net that knows no direction of its own: the image, and how it rises along z, y and x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image):
        rises = [torch.gradient(image[:, 0], dim=axis)[0] for axis in (1, 2, 3)]
        return torch.stack([image[:, 0], *rises], 1) * self.weight


def test_views_turn_vectors_back():
    image = np.random.default_rng(0).integers(0, 255, (4, 16, 16), np.uint8)
    vector = (Activation("0:1", "none"), Activation("1:4", "vector"))
    views = Views(flips=(0, 1, 2), turns=True)
    plain, turned, wrong = (predict(Slopes(), image, window=(4, 16, 16), infer=infer) for infer in (
        Infer(activation=vector), Infer(activation=vector, views=views),
        Infer(activation=(Activation(":", "none"),), views=views)))
    np.testing.assert_allclose(turned, plain, atol=1e-5)
    assert abs(wrong[1:]).max() < 0.1 * abs(plain[1:]).max()  # opposite views would take each other's vectors away
    with pytest.raises(InputError, match="must name three channels, along z, y and x; got "):
        predict(Slopes(), image, window=(4, 16, 16), infer=Infer(activation=(Activation("2:4", "vector"),)))


@pytest.mark.parametrize("override, sentence", [
    ("infer.activation=[]", "infer.activation must name its three channels with kind = vector"),
    ("infer.dtype=uint8", "dtype must be float32 or float16 with an activation of kind = vector"),
    ("labels.split=true", "the targets polarity and partners read the side of a synapse from its id"),
    ("infer.views.combine=max", "views.combine must be mean with an activation of kind = vector")])
def test_settings_that_would_spoil_vectors_are_refused(override, sentence):
    with pytest.raises(InputError, match=sentence):
        config.load(Settings, ROOT / "configs" / "tissue" / "synth_synapses.toml", [override])


def test_a_synapse_has_as_many_partners_as_are_asked_for_and_each_is_an_entry(tissue):
    numbers = [synapse.number for synapse in tissue.synapses]
    counts = np.unique(numbers, return_counts=True)[1]
    assert counts.max() > 2
    assert counts.max() <= 4
    for number in set(numbers):
        rows = [synapse for synapse in tissue.synapses if synapse.number == number]
        assert len({(synapse.pre, synapse.pre_site) for synapse in rows}) == 1
        assert len({synapse.post for synapse in rows}) == len(rows)
        assert set(np.unique(tissue.neuron_ids[tissue.polarity == 2 * number])) >= {one.post for one in rows}
        assert set(np.unique(tissue.neuron_ids[tissue.polarity == 2 * number - 1])) == {rows[0].pre}
        for synapse in rows:
            at = tuple(np.round(np.array(synapse.post_site) / tissue.resolution).astype(int))
            assert (tissue.neuron_ids[at], tissue.polarity[at]) == (synapse.post, 2 * number)
    found = segment.partners(tissue.neuron_ids, tissue.polarity, resolution=tissue.resolution, share=1e-3)
    assert sorted(zip(found.synapse.tolist(), found.pre.tolist(), found.post.tolist())) == sorted(
        (synapse.number, synapse.pre, synapse.post) for synapse in tissue.synapses)


def as_prediction(labels, resolution, exclusive):
    """What a perfect net would say of labels of two sides."""
    vectors = partners(torch.from_numpy(labels.astype(np.int64))[None], resolution)[0][0].numpy()
    pre, post = labels % 2 == 1, (labels > 0) & (labels % 2 == 0)
    masks = [labels == 0, pre, post] if exclusive else [pre, post, labels > 0]
    return np.concatenate([np.stack(masks), vectors]).astype(np.float32)


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_truth_as_a_prediction_gives_the_true_partners(tissue, tmp_path, exclusive):
    values = as_prediction(tissue.polarity, tissue.resolution, exclusive)
    path = tmp_path / "prediction.h5"
    with create_volume(f"{path}:main", values.shape, values.dtype, tissue.resolution) as out:
        out[...] = values
    settings = PartnersDecode(small=0, exclusive=exclusive)
    labels = open_volume(decode(open_volume(path), settings, tmp_path / "labels.h5"), "labels")[...]
    table = metrics.contingency(tissue.polarity, labels, ignore_truth=())
    assert metrics.synapse_f1(table, "sides", 0.9).f1 == 1
    found = segment.partners(tissue.neuron_ids, labels, resolution=tissue.resolution, share=1e-3)
    pairs = np.stack([found.pre, found.post], 1)
    truth = [(synapse.pre, synapse.post) for synapse in tissue.synapses]
    assert metrics.edge_scores(np.array(truth, np.uint64), pairs)[0].f1 == 1


def test_synapses_whose_sides_touch_stay_apart():
    labels = np.zeros((5, 12, 40), np.uint8)
    labels[1:4, 3:6, 3:18], labels[1:4, 6:9, 3:18] = 1, 2
    labels[1:4, 3:6, 19:36], labels[1:4, 6:9, 18:36] = 3, 4
    prediction = as_prediction(labels, RESOLUTION, False)
    assert np.array_equal(partner_instances(prediction, RESOLUTION, small=0), labels)
    # pieces alone make one synapse of both
    assert segment.polarity_instances(prediction[:3], small=0, dilate_size=1).max() == 2


def slow_instances(prediction, sizes, reach):
    """The definition: every voxel against every synapse."""
    pre, post = prediction[0] > 0.5, prediction[1] > 0.5
    pieces = segment.connected_components(pre & ~post)
    middles = [np.argwhere(pieces == number).mean(0) * sizes for number in range(1, pieces.max() + 1)]
    labels = np.where(pieces > 0, 2 * pieces.astype(np.int64) - 1, 0)
    for at in np.argwhere(post):
        place = at * sizes - prediction[(slice(3, 6), *at)].astype(float) * VECTOR_NM
        away = [((place - middle) ** 2).sum() for middle in middles]
        if away and min(away) <= reach * reach:
            labels[tuple(at)] = 2 * int(np.argmin(away)) + 2
    return labels


def test_every_voxel_goes_to_the_nearest_synapse_within_reach():
    random = np.random.default_rng(3)
    for reach, threads in ((10.0, 1), (60.0, 3), (200.0, 2), (1e6, 1)):
        prediction = random.normal(0, 1, (6, 4, 9, 11)).astype(np.float32)
        prediction[:2] = random.random((2, 4, 9, 11)) > 0.8
        prediction[2] = 1
        found = partner_instances(prediction, RESOLUTION, small=0, reach_nm=reach, threads=threads)
        assert np.array_equal(found, slow_instances(prediction, np.array(RESOLUTION), reach))


def test_one_huge_vector_changes_no_other_voxel():
    random = np.random.default_rng(0)
    known = random.uniform(0, 3000, (80, 3))
    places = known[random.integers(0, 80, 800)] + random.normal(0, 25, (800, 3))
    plain = _nearest_place(places, known, 50.0)
    assert (plain >= 0).sum() > 400
    for huge in (1e14, -1e19, 3e32):
        found = _nearest_place(np.concatenate([places, np.full((1, 3), huge)]), known, 50.0)
        assert np.array_equal(found, [*plain, -1])


def test_small_pieces_go_and_nothing_has_no_synapse():
    labels = np.zeros((5, 12, 40), np.uint8)
    labels[1:4, 3:6, 3:18], labels[1:4, 6:9, 3:18], labels[1, 10, 20] = 1, 2, 2
    prediction = as_prediction(labels, RESOLUTION, False)
    found = partner_instances(prediction, RESOLUTION, small=20)
    assert np.array_equal(found, np.where(np.arange(40) == 20, 0, labels))
    assert not partner_instances(prediction, RESOLUTION, small=200).any()
    assert not partner_instances(np.zeros((6, 3, 4, 5), np.float32), RESOLUTION).any()
    assert partner_instances(np.zeros((6, 0, 4, 5), np.float32), RESOLUTION).shape == (0, 4, 5)


@pytest.mark.parametrize("change, sentence", [
    ({"prediction": np.zeros((5, 2, 3, 4), np.float32)}, "prediction must be"),
    ({"prediction": np.zeros((6, 2, 3, 4), np.uint8)}, "floating point"),
    ({"prediction": np.full((6, 2, 3, 4), np.nan, np.float32)}, "NaN"),
    ({"resolution": (0, 1, 1)}, "resolution must be three sizes above 0"),
    ({"threshold": 2}, "threshold must be 0 to 1"),
    ({"small": -1}, "small must be from 0"), ({"reach_nm": 0}, "reach_nm must be from")])
def test_what_cannot_be_decoded_is_said(change, sentence):
    given = {"prediction": np.zeros((6, 2, 3, 4), np.float32), "resolution": RESOLUTION} | change
    with pytest.raises(InputError, match=sentence):
        partner_instances(**given)


def test_a_prediction_without_a_resolution_is_refused(tmp_path):
    with create_volume(f"{tmp_path}/p.h5:main", (6, 2, 3, 4), np.float32) as out:
        out[...] = 0
    with pytest.raises(InputError, match=r"measures in nm, but .* has no resolution"):
        decode(open_volume(f"{tmp_path}/p.h5"), PartnersDecode(), tmp_path / "labels.h5")


def test_vectors_are_neither_learned_nor_written_where_voxels_have_no_size_or_different_ones(tmp_path):
    sources = {}
    for name, resolution in (("fine", (40.0, 4.0, 4.0)), ("coarse", (40.0, 8.0, 8.0)), ("bare", None)):
        with create_volume(f"{tmp_path}/{name}.h5:main", (4, 16, 16), np.uint8, resolution) as out:
            out[...] = 1
        sources[name] = open_source(Data(storage="lazy"), VolumeFiles(image=f"{tmp_path}/{name}.h5"), "train")
    size = sources["fine"].resolution
    check_vectors([sources["fine"]], [PartnersTarget()], size)
    check_vectors(list(sources.values()), [PolarityTarget()], size)
    for name, sentence in (("coarse", r"by \(40.0, 4.0, 4.0\) nm.*but coarse has voxels of \(40.0, 8.0, 8.0\)"),
                           ("bare", "bare does not say its resolution: set data.resolution")):
        with pytest.raises(InputError, match=sentence):
            check_vectors([sources["fine"], sources[name]], [PartnersTarget()], size)
    infer = Infer(activation=(Activation("1:4", "vector"),))
    with pytest.raises(InputError, match="vectors, which are in nm, but bare does not say its resolution"):
        predict(Slopes(), f"{tmp_path}/bare.h5", tmp_path / "out.h5", window=(4, 16, 16), infer=infer)
    assert not (tmp_path / "out.h5").exists()
    predict(Slopes(), f"{tmp_path}/bare.h5", tmp_path / "out.h5", window=(4, 16, 16), infer=infer,
            data=Data(resolution=(40.0, 8.0, 8.0)))
    assert open_volume(tmp_path / "out.h5").resolution == (40.0, 8.0, 8.0)
