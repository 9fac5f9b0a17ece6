"""python -m emcore new: what it finds in volumes, what it chooses, what it refuses, and that its recipe runs."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest

from emcore import config
from emcore.config import from_table
from emcore.engine import checkpoint
from emcore.engine.arithmetic.mode import Mode
from emcore.errors import InputError, run_command
from emcore.new import command, costs
from emcore.new import facts as facts_module
from emcore.new.facts import look, measured
from emcore.new.rules import BLOCK, SHEET, STACK, THIN, kind_of, recipe
from emcore.segment import affinity_components
from emcore.settings import Settings
from emcore.smoke import short, smoke
from emcore.synth import synthesize
from emcore.volumes import create_volume
from tests.test_perfect_affinities import own_affinities, voi_of

FREE = costs.Costs(step=2.0, voxel=1e-6, device="cpu", operations=1e5)


def written(folder, labels, resolution=(10.0, 10.0, 10.0), image=None, name="mine.h5", **place):
    """A file with an image and labels; the image is noise unless it is given."""
    image = np.random.default_rng(0).integers(0, 255, labels.shape, np.uint8) if image is None else image
    for dataset, array, extra in (("raw", image, {}), ("labels", labels, place)):
        with create_volume(f"{folder}/{name}:{dataset}", array.shape, array.dtype, resolution, **extra) as out:
            out[...] = array
    return f"{folder}/{name}:raw", f"{folder}/{name}:labels"


def bars(shape, wide, gap=0):
    """Labels that run along z, `wide` pixels wide, with `gap` pixels of 0 between them."""
    number = np.arange(shape[2]) // (wide + gap) + 1
    number[np.arange(shape[2]) % (wide + gap) >= wide] = 0
    return np.broadcast_to(number, shape).astype(np.uint32).copy()


@pytest.fixture
def cheap(monkeypatch):
    """Costs that nobody measures."""
    monkeypatch.setattr(costs, "measure", lambda settings: FREE)


def new(folder, pair, task, *more):
    return run_command(command.main, [str(folder / "mine.toml"), "--image", pair[0], "--labels", pair[1],
                                      "--task", task, *more])


# ---- what is found


@pytest.mark.parametrize("wide", [5, 7, 11])
def test_objects_are_as_wide_as_they_were_drawn(wide):
    found = measured(bars((8, 64, 64), wide), 1.0, "labels")
    assert found["wide"] == wide
    assert found["thin"] <= wide
    assert found["touching"] == 1.0
    assert found["empty"] == 0.0
    assert not found["is_mask"]
    apart = measured(bars((8, 64, 64), wide, gap=2), 1.0, "labels")
    assert apart["touching"] == 0.0
    assert abs(apart["wide"] - wide) <= 1


def test_the_width_of_objects_in_thick_sections_is_that_within_a_section():
    labels = np.zeros((4, 64, 64), np.uint8)
    labels[1, 10:41, 10:41] = 1  # in one section alone
    assert measured(labels, 10.0, "labels")["wide"] == 31
    assert measured(labels, 1.0, "labels")["wide"] == 1


def test_tissue_without_labels_is_told_from_borders():
    labels = bars((8, 64, 64), 6, gap=2)
    assert measured(labels, 1.0, "labels")["empty"] == 0.0
    labels[:, 32:] = 0
    assert 0.3 < measured(labels, 1.0, "labels")["empty"] < 0.5


@pytest.mark.parametrize("resolution, kind", [((10, 10, 10), BLOCK), ((20, 9, 9), BLOCK), ((30, 8, 8), STACK),
                                              ((50, 4, 4), SHEET), ((16, 8, 8), BLOCK)])
def test_the_resolution_says_what_the_volume_is(tmp_path, resolution, kind):
    facts = look(*written(tmp_path, bars((16, 32, 32), 6), resolution))
    assert kind_of(facts) is kind
    assert facts.told_by == "the image"


def test_without_a_resolution_the_image_decides_and_a_flag_says_it(tmp_path):
    smooth = np.random.default_rng(0).integers(0, 255, (16, 8, 8), np.uint8).repeat(4, 1).repeat(4, 2)
    pair = written(tmp_path, bars((16, 32, 32), 6), None, smooth)
    facts = look(*pair)
    assert facts.resolution is None
    assert kind_of(facts) is STACK
    table, notes = recipe("mine", *pair, "neurons", facts)
    assert "--resolution" in notes[0]
    assert "resolution" not in table["data"]
    told = look(*pair, (10.0, 10.0, 10.0))
    assert kind_of(told) is BLOCK
    assert recipe("mine", *pair, "neurons", told)[0]["data"]["resolution"] == [10.0, 10.0, 10.0]


def test_labels_of_a_part_of_the_image_are_found_by_their_offset(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (24, 48, 80), np.uint8)
    labels = bars((16, 32, 32), 6)
    pair = written(tmp_path, labels, image=image, offset=(40.0, 80.0, 400.0))
    facts = look(*pair)
    assert facts.region == ((4, 20), (8, 40), (40, 72))
    assert facts.shape == (16, 32, 32)
    settings = from_table(Settings, recipe("mine", *pair, "neurons", facts)[0])
    box = settings.data.test[0].box
    assert all(low <= start and stop <= high for (low, high), start, stop in zip(facts.region, box[::2], box[1::2]))
    first, last = (round(share * facts.image[settings.data.split_axis]) for share in settings.data.train_part)
    assert last <= box[2 * settings.data.split_axis]
    assert first == 0


# ---- what is chosen


def test_the_held_out_part_holds_labels_and_no_voxel_that_is_learned(tmp_path):
    labels = np.zeros((16, 32, 200), np.uint8)
    labels[4:12, 8:24, 10:100] = 1  # nothing at the far end of the longest axis
    pair = written(tmp_path, labels)
    data = from_table(Settings, recipe("mine", *pair, "mask", look(*pair))[0]).data
    z0, z1, y0, y1, x0, x1 = data.test[0].box
    assert labels[z0:z1, y0:y1, x0:x1].sum() >= 0.05 * labels.sum()
    assert data.split_axis == 2
    assert data.validation_part == (0.0, 0.2)
    assert data.train_part == (0.2, 1.0)
    assert (x0, x1) == (0, 40)


def test_patches_of_masks_are_as_wide_as_their_surroundings_need(tmp_path):
    labels = np.zeros((6, 520, 520), np.uint8)
    labels[:, 100:160, 100:160] = 1
    for resolution, fold, patch in (((40, 4, 4), 4, 512), ((80, 8, 8), 2, 256), ((160, 16, 16), 2, 256)):
        pair = written(tmp_path, labels, resolution, name=f"{resolution[1]}.h5")
        facts = look(*pair)
        settings = from_table(Settings, recipe("mine", *pair, "mask", facts)[0])
        settings.check()
        assert settings.data.patch == (6, patch, patch)
        assert settings.model.rsunet.fold == (1, fold, fold)
        nearer = from_table(Settings, recipe("mine", *pair, "membranes", replace(facts, labelled=0.7))[0])
        assert nearer.model.rsunet.fold == (1, 1, 1)


@pytest.mark.parametrize("resolution", [(12, 12, 12), (30, 6, 6)])
def test_neurons_are_decoded_without_error_from_perfect_affinities(tmp_path, resolution):
    truth = synthesize((24, 80, 80), resolution, seed=3, neurites=30).neuron_ids
    pair = written(tmp_path, truth, resolution)
    table, _ = recipe("mine", *pair, "neurons", look(*pair))
    settings = from_table(Settings, table)
    settings.check()
    assert settings.target[0].offsets[:3] == ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    assert voi_of(affinity_components(own_affinities(truth.astype(np.int64)), 0.5), settings.decode) <= 0.02


def test_steps_of_affinities_are_no_longer_than_neurons_are_wide(tmp_path):
    for wide, steps in ((2, {1}), (5, {1, 3}), (11, {1, 3, 9})):
        pair = written(tmp_path, bars((24, 48, 48), wide), name=f"{wide}.h5")
        offsets = recipe("mine", *pair, "neurons", look(*pair))[0]["target"][0]["offsets"]
        assert {-sum(offset) for offset in offsets} == steps


@pytest.mark.parametrize("task", ["neurons", "mask"])
@pytest.mark.parametrize("resolution", [(10, 10, 10), (30, 8, 8), (50, 4, 4)])
@pytest.mark.parametrize("shape", [(1, 40, 40), (5, 24, 24), (7, 64, 64), (8, 64, 64), (12, 20, 40), (9, 16, 16)])
def test_no_patch_is_larger_than_the_labels_and_no_step_than_the_patch(tmp_path, task, resolution, shape):
    pair = written(tmp_path, bars(shape, 11, 0 if task == "neurons" else 5), resolution)
    facts = replace(look(*pair), is_mask=task == "mask")
    table, notes = recipe("mine", *pair, task, facts)
    settings = from_table(Settings, table)
    settings.check()
    patch = settings.data.patch
    assert all(size <= there for size, there in zip(patch, shape)), patch
    if task == "neurons":
        assert all(-step < size or step == -1 for offset in settings.target[0].offsets
                   for step, size in zip(offset, patch))
    few = shape[0] < 8
    assert (kind_of(facts) is THIN) == few == any("needs 8" in note for note in notes)
    assert facts.is_flat or not few


def test_ids_of_two_to_the_63_and_more_are_no_objects_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(facts_module, "MOST", 16 * 32 * 32)  # the sample is the middle of the labels
    labels = bars((16, 64, 128), 6).astype(np.uint64)
    labels[0, 0, 0], labels[15, 63, 127], labels[8, 32, 64] = 2**64 - 1, 2**63, 2**64 - 2
    labels[3, 3, 3] = 2**63 - 1
    facts = look(*written(tmp_path, labels))
    assert facts.sampled
    assert facts.unknown == (2**63, 2**64 - 2, 2**64 - 1)
    assert facts.objects < 30
    table, _ = recipe("mine", "a", "b", "neurons", facts)
    assert from_table(Settings, table).data.ignore == facts.unknown
    labels[0, 0, :20] = np.arange(20, dtype=np.uint64) + np.uint64(2**63)
    pair = written(tmp_path, labels, name="many.h5")
    with pytest.raises(InputError, match=r"more than 16 ids of 2\^63 and above"):
        look(*pair)


def test_rare_labels_count_more(tmp_path):
    labels = np.zeros((16, 64, 64), np.uint64)
    labels[4:8, 8:24, 8:24] = 1
    labels[0, 0, 0] = 2**64 - 1  # CREMI's way to write that there is nothing
    pair = written(tmp_path, labels)
    table, _ = recipe("mine", *pair, "synapses", look(*pair))
    assert table["loss"]["terms"][0]["positive_weight"] == 3.0
    assert table["data"]["background"] == [2**64 - 1]
    labels[8:] = 1
    pair = written(tmp_path, labels, name="more.h5")
    assert "positive_weight" not in recipe("mine", *pair, "mask", look(*pair))[0]["loss"]["terms"][0]


def test_tissue_that_nobody_labelled_is_not_learned_as_border(tmp_path):
    labels = bars((16, 64, 64), 8)
    labels[:, 32:] = 0
    pair = written(tmp_path, labels)
    table, notes = recipe("mine", *pair, "neurons", look(*pair))
    assert table["target"][0]["background"] == "ignore"
    assert any("far from every label" in note for note in notes)


# ---- the file


def test_the_file_holds_only_what_differs_and_reads_back(tmp_path, cheap, capsys):
    pair = written(tmp_path, bars((32, 64, 64), 11))
    assert new(tmp_path, pair, "neurons") == 0
    text = (tmp_path / "mine.toml").read_text()
    settings = config.load(Settings, tmp_path / "mine.toml")
    assert config.differing(settings) == tomllib.loads(text)
    assert len(text.splitlines()) < 130
    assert all(len(line) <= 125 for line in text.splitlines())
    assert settings.train.steps == 30 * 60 / FREE.step // 50 * 50
    assert settings.infer.window == (32, 64, 64)
    assert settings.data.workers == 0
    assert "10 x 10 x 10 nm" in capsys.readouterr().out
    assert text.startswith("# Neurons of ")
    assert new(tmp_path, pair, "neurons") == 2
    assert "--force" in capsys.readouterr().err
    assert new(tmp_path, pair, "neurons", "--force", "--minutes", "60") == 0
    assert config.load(Settings, tmp_path / "mine.toml").train.steps == 2 * settings.train.steps


def test_little_memory_makes_batch_and_window_small_and_too_little_is_refused(tmp_path, monkeypatch):
    pair = written(tmp_path, bars((64, 64, 64), 11))
    settings = from_table(Settings, recipe("mine", *pair, "neurons", look(*pair))[0])
    for there, batch, window in ((2**40, 2, (64, 256, 256)), (2**32, 2, (64, 128, 128)), (2**30, 1, (64, 64, 64))):
        monkeypatch.setattr(costs, "memory_there", lambda there=there: there)
        assert costs.fitting(settings).train.batch == batch
        assert costs.window_of(settings, BLOCK.windows, (64, 256, 256)) == window
    monkeypatch.setattr(costs, "memory_there", lambda: 2**28)
    with pytest.raises(InputError, match="GiB are left"):
        costs.fitting(settings)


# ---- what is refused, and what is asked


@pytest.mark.parametrize("task, labels, sentence", [
    ("neurons", np.eye(32, dtype=np.uint8)[None].repeat(16, 0), "a mask of one value"),
    ("mask", np.ones((16, 32, 32), np.uint8), "every voxel"),
    ("membranes", bars((16, 32, 32), 6), "every voxel"),
    ("mask", np.zeros((16, 32, 32), np.uint8), "holds no label"),
    ("axons", bars((16, 32, 32), 6), "--task is one of"),
    ("neurons", bars((16, 8, 32), 6), "label more"),
])
def test_labels_that_do_not_fit_the_task_are_one_sentence(tmp_path, cheap, capsys, task, labels, sentence):
    assert new(tmp_path, written(tmp_path, labels), task) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mine.toml").exists()


def test_flags_that_cannot_be_right_are_refused(tmp_path, cheap, capsys):
    pair = written(tmp_path, bars((16, 32, 32), 6))
    for more, sentence in ((("--resolution", "30", "8", "8"), "is not what"), (("--minutes", "0"), "--minutes"),
                           (("--minutes", "inf"), "above 0; got inf"), (("--minutes", "nan"), "above 0; got nan"),
                           (("--from", "isbi2012_membranes"), "predicts binary"), (("--from", "nobody"), "nobody")):
        assert new(tmp_path, pair, "neurons", *more) == 2
        assert sentence in capsys.readouterr().err
    assert run_command(command.main, [str(tmp_path / "mine.yaml")]) == 2
    assert "must end in .toml" in capsys.readouterr().err


def test_what_is_not_given_is_asked_for_on_a_terminal_alone(tmp_path, cheap, capsys, monkeypatch):
    pair = written(tmp_path, bars((16, 32, 32), 6))
    out = str(tmp_path / "mine.toml")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert run_command(command.main, [out]) == 2
    assert "--image is missing" in capsys.readouterr().err
    def ended(question):
        raise EOFError

    answers = iter([*pair, "neurons"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ended)
    assert run_command(command.main, [out]) == 2
    assert "nothing was answered for --image" in capsys.readouterr().err
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert run_command(command.main, [out]) == 0
    assert config.load(Settings, out).data.train[0].image == pair[0]


# ---- other weights, and the real thing


def test_weights_bring_their_net_and_another_resolution_is_said(tmp_path, cheap, capsys):
    pair = written(tmp_path, bars((48, 64, 64), 11), (20.0, 20.0, 20.0))
    assert new(tmp_path, pair, "neurons", "--from", "fib25_neurons") == 0
    settings = config.load(Settings, tmp_path / "mine.toml")
    assert settings.train.start_from == "fib25_neurons"
    assert settings.model.rsunet.width == (16, 32, 48, 64)
    assert settings.data.patch == (48, 48, 48)
    assert len(settings.target[0].offsets) == settings.model.out_channels == 9
    assert "learned at 10 x 10 x 10 nm" in capsys.readouterr().out


def test_weights_of_another_net_or_of_larger_patches_than_the_labels_are_refused(tmp_path, cheap, capsys):
    pair = written(tmp_path, bars((48, 64, 64), 11))
    other = {"name": "other", "target": [{"kind": "affinity"}], "model": {"name": "unet_v1", "out_channels": 3}}
    checkpoint.save(tmp_path / "other.pt", {"step": 1, "model": {}, "ema": None,
                                            "config": config.to_table(from_table(Settings, other))})
    assert new(tmp_path, pair, "neurons", "--from", str(tmp_path / "other.pt")) == 2
    assert "belongs to a net of model.name = unet_v1" in capsys.readouterr().err
    pair = written(tmp_path, bars((6, 64, 64), 11), name="thin.h5")
    assert new(tmp_path, pair, "neurons", "--from", "fib25_neurons") == 2
    assert "takes patches of at least 8 x" in capsys.readouterr().err


def test_costs_are_measured_by_the_steps_of_the_run(tmp_path):
    pair = written(tmp_path, bars((16, 32, 32), 6))
    settings = from_table(Settings, recipe("mine", *pair, "neurons", look(*pair))[0])
    found = costs.timed(replace(settings, train=short(settings.train)), Mode("cpu", "fp32", "contiguous", False))
    assert 0 < found.voxel * 16**3 < found.step < 60
    assert 1e4 < found.operations < 1e6  # 166,000 for this net by hand: 2 * 27 * channels in * channels out, and so on
    assert costs.steps_in(30, 2.0) == 900
    assert costs.steps_in(30, 1e6) == 100
    assert costs.steps_in(1e9, 1.0) == costs.steps_in(1e308, 1e-3) == 20_000


@pytest.mark.long
@pytest.mark.parametrize("task, resolution", [("neurons", (10, 10, 10)), ("membranes", (50, 4, 4)),
                                              ("synapses", (30, 8, 8))])
def test_a_recipe_of_new_passes_its_smoke_test(tmp_path, monkeypatch, task, resolution):
    monkeypatch.chdir(tmp_path)
    tissue = synthesize((24, 96, 96), resolution, seed=1)
    truth = {"neurons": tissue.neuron_ids, "membranes": (tissue.neuron_ids > 0).astype(np.uint8),
             "synapses": (tissue.clefts > 0).astype(np.uint8)}[task]
    if task == "membranes":
        truth[:, ::9] = 0
    pair = written(tmp_path, truth, resolution, tissue.raw)
    assert new(tmp_path, pair, task) == 0
    assert smoke("mine.toml", []) == 0
