"""What decoders make of perfect affinities: those of a truth itself, which a right decoder gives back."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore import config, metrics, segment, synth
from emcore.decode.affinities import labels_of, segmentation_of
from emcore.decode.labels import connect, without_small
from emcore.segment import Affinities
from emcore.settings import Settings
from emcore.settings.decode import AffinityDecode, ConnectedDecode

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"
TRUTHS = ("tissue", "isotropic tissue", "fib25_val", "gala_train")
RIGHT = {"watershed": AffinityDecode(), "faces": AffinityDecode(fragments="faces"),
         "smooth faces": AffinityDecode(fragments="faces-2", statistic="aff75_his256")}
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "tissue").glob("*.toml"))


def own_affinities(labels):
    """1 where a voxel and the one before it have one label that is not 0."""
    affs = np.zeros((3, *labels.shape), np.float32)
    for axis in range(3):
        here, before = (((slice(None),) * axis + (part,)) for part in (slice(1, None), slice(None, -1)))
        affs[axis][here] = (labels[here] == labels[before]) & (labels[here] != 0)
    return affs


@pytest.fixture(scope="module", params=TRUTHS)
def pieces(request):
    """A truth cut into its 6-connected pieces; 0 is no piece."""
    if request.param.endswith("tissue"):
        fine = request.param.startswith("isotropic")
        resolution = (12, 12, 12) if fine else (30, 6, 6)
        labels = synth.synthesize((24, 80, 80), resolution, seed=3, neurites=30).neuron_ids
    else:
        if not (REAL / f"{request.param}.h5").exists():
            pytest.skip(f"{request.param}.h5 is not here")
        with h5py.File(REAL / f"{request.param}.h5") as file:
            labels = file["labels"][:24, :160, :160]
    found = segment.affinity_components(own_affinities(labels.astype(np.int64)), 0.5)
    assert found.max() > 10
    return found


def voi_of(pieces, settings):
    affs = Affinities(own_affinities(pieces))
    if isinstance(settings, ConnectedDecode):
        labels = without_small(connect(affs, settings), settings.remove_size)
    else:
        labels = labels_of(segmentation_of(affs, settings), settings)
    found = metrics.voi(metrics.contingency(pieces, labels, (0,)))
    return found.split + found.merge


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_decoder_gives_the_pieces_of_a_truth_back(pieces, name):
    assert voi_of(pieces, RIGHT[name]) <= 0.02


def test_our_recipes_for_neurons_ship_decoders_that_are_right_on_perfect_affinities(pieces):
    tried = []
    for name in RECIPES:
        settings = config.load(Settings, ROOT / "configs" / "tissue" / f"{name}.toml").decode
        if isinstance(settings, AffinityDecode | ConnectedDecode):
            assert voi_of(pieces, settings) <= 0.15, name
            tried.append(name)
    assert {"banis_neurons", "fib25_neurons"} <= set(tried)


def test_floods_of_one_sided_maps_are_not_right(pieces):
    """So the tests above can fail: this decoder joins bodies that touch without a gap, and its page says so."""
    if (pieces > 0).mean() > 0.999:
        wrong = AffinityDecode(fragments="minima", statistic="aff50_his256", threshold=0.505)
        assert voi_of(pieces, wrong) > 0.3
