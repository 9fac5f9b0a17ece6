"""Recipes: they run from training to scores, they say what the published systems say, and files can build on files."""

import math
import re
from pathlib import Path

import pytest

from emcore import config
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.smoke import smoke
from emcore.synth import synthesize, write_layout

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.toml"))
FAST = ("demo", "emr50_polarity")  # the others of --smoke are marked slow


def settings_of(name):
    return config.load(Settings, ROOT / "configs" / f"{name}.toml")


def value_of(settings, key):
    """The value of loss.terms.0.kind and the like."""
    for step in key.split("."):
        settings = settings[int(step)] if step.isdigit() else getattr(settings, step)
    return settings


def check(name, pins):
    settings = settings_of(name)
    for key, wanted in pins.items():
        assert value_of(settings, key) == wanted, key


def named_files(settings):
    return {reference.partition(":")[0] for part in (settings.data.train, settings.data.validation, settings.data.test)
            for volume in part for reference in (volume.image, volume.label, volume.skeleton) if reference}


# ---- every recipe


@pytest.mark.parametrize("path", [pytest.param(path, marks=[] if path.stem in FAST else pytest.mark.slow)
                                  for path in RECIPES], ids=lambda path: path.stem)
def test_a_recipe_runs_from_training_to_scores(path, tmp_path):
    if any(name.endswith(".tif") for name in named_files(config.load(Settings, path))):
        pytest.importorskip("tifffile")
    settings = config.load(Settings, path)
    assert smoke(str(path), [f"outputs={tmp_path}"]) == 0
    run = tmp_path / "smoke" / settings.name
    assert (run / "checkpoints" / "step_000000004.pt").exists()
    if settings.data.test:
        assert list(run.glob("results_step=4/*_prediction.h5"))
    if any(volume.label for volume in settings.data.test):
        assert (run / "report.html").exists()
        assert (run / "results_step=4" / "scores.json").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_data_cost_and_what_to_expect_and_is_named_like_its_file(path):
    head = re.match(r"(?:#.*\n)+", path.read_text())[0]
    for word in ("Data", "Cost", "Expect"):
        assert re.search(word, head, re.IGNORECASE), f"{path.name} does not say {word}"
    assert config.load(Settings, path).name == path.stem


def test_the_reduced_run_never_leaves_its_folder(tmp_path):
    """A recipe may name files anywhere; the smoke test must not write there."""
    elsewhere = tmp_path / "precious.h5"
    elsewhere.write_bytes(b"mine")
    recipe = tmp_path / "mine.toml"
    text = (ROOT / "configs" / "demo.toml").read_text().replace('"B.h5:raw"', f'"{elsewhere}:raw"')
    recipe.write_text(text.replace('"A.h5:raw"', '"../../../A.h5:raw"').replace('name = "demo"', 'name = "mine"'))
    assert smoke(str(recipe), [f"outputs={tmp_path / 'out'}"]) == 0
    assert elsewhere.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "out", "precious.h5"]
    with pytest.raises(InputError, match="plain file name"):
        smoke(str(recipe), ["name=../up", f"outputs={tmp_path / 'out'}"])


# ---- one file based on another


def test_a_file_takes_what_its_base_says_and_changes_it(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "first.toml").write_text('name = "first"\n[train]\nsteps = 7\nbatch = 2\n[[target]]\nkind = "binary"\n'
                                         '[[target]]\nkind = "lsd"\n')
    (tmp_path / "inner" / "second.toml").write_text('base = "../first.toml"\nname = "second"\n[train]\nsteps = 9\n')
    (tmp_path / "third.toml").write_text('base = "inner/second.toml"\n[[target]]\nkind = "polarity"\n')
    second = config.load(Settings, tmp_path / "inner" / "second.toml")
    assert (second.name, second.train.steps, second.train.batch, len(second.target)) == ("second", 9, 2, 2)
    third = config.load(Settings, tmp_path / "third.toml", ["train.batch=6"])
    assert (third.name, third.train.steps, third.train.batch) == ("second", 9, 6)
    assert [target.kind for target in third.target] == ["polarity"]


def test_a_file_based_on_itself_or_on_nothing_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\nname = "a"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(InputError, match=r"a\.toml is based on itself, through a\.toml, b\.toml"):
        config.load(Settings, tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('base = "absent.toml"\nname = "a"\n')
    with pytest.raises(InputError, match=r"no config file .*absent\.toml"):
        config.load(Settings, tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('base = 3\nname = "a"\n')
    with pytest.raises(InputError, match=r"base in .* must be the name of a TOML file, got 3"):
        config.load(Settings, tmp_path / "a.toml")


# ---- what the published recipes state


def test_cremi_clefts_is_the_documented_recipe():
    check("cremi_clefts", {
        "data.patch": (18, 256, 256), "data.resolution": (40.0, 4.0, 4.0), "data.pad": (0, 32, 32),
        "data.reject_below": 1000, "data.reject_probability": 0.95, "data.storage": "memory",
        "data.normalise": "range", "data.percentiles": (0.0, 100.0),
        "model.name": "rsunet", "model.out_channels": 1, "model.rsunet.width": (32, 64, 96, 128, 160),
        "model.rsunet.down": ((1, 2, 2),) * 4, "model.rsunet.depth_2d": 1, "model.rsunet.kernel_2d": (1, 3, 3),
        "model.rsunet.norm": "batch", "model.rsunet.act": "elu",
        "loss.terms.0.kind": "bce", "loss.terms.0.weight": 1.0, "loss.terms.0.positive_weight": None,
        "loss.terms.1.kind": "dice", "loss.terms.1.weight": 1.0, "loss.terms.1.smooth": 1e-5, "loss.clamp": 20.0,
        "augment.flip.probability": (0.0, 0.5, 0.5), "augment.turn.probability": 0.5,
        "augment.elastic.probability": 0.3, "augment.elastic.sigma": (5.0, 8.0),
        "augment.elastic.magnitude": (50.0, 150.0), "augment.noise.probability": 0.3, "augment.noise.deviation": 0.05,
        "augment.shift.probability": 0.3, "augment.shift.offset": 0.1, "augment.gamma.probability": 0.3,
        "augment.gamma.range": (0.7, 1.4), "augment.misalignment.probability": 0.5,
        "augment.misalignment.displacement": 16, "augment.misalignment.rotate_ratio": 0.0,
        "augment.missing_section.probability": 0.3, "augment.missing_section.sections": 2,
        "augment.missing_section.full": 0.5, "augment.missing_section.part": (0.25, 0.75),
        "augment.missing_section.fill": (0.0, 1.0), "augment.blur.probability": 0.3, "augment.blur.sections": 2,
        "augment.blur.kernel": 11, "augment.blur.sigma": (1.0, 3.0), "augment.blur.full": 0.5,
        "augment.blur.part": (0.25, 0.75), "augment.exclusive": (),
        "train.steps": 150_000, "train.batch": 4, "train.precision": "bf16", "train.optimizer.kind": "adamw",
        "train.optimizer.lr": 1e-3, "train.optimizer.weight_decay": 0.01, "train.optimizer.betas": (0.9, 0.999),
        "train.optimizer.clip": 1.0, "train.schedule.kind": "cosine", "train.schedule.least": 1e-5,
        "train.schedule.every": 1, "train.ema.decay": 0.999, "train.ema.warmup": 500, "train.log_steps": 10,
        "train.save.monitor": "loss/train", "train.save.best": 3, "train.save.steps": 10 * 1280,
        "train.validate.steps": 1280,
        "infer.window": (18, 256, 256), "infer.overlap": 0.5, "infer.blend": "bump", "infer.pad": (0, 32, 32),
        "infer.batch": 4, "infer.activation.0.kind": "sigmoid", "infer.views.flips": (0, 1, 2),
        "infer.views.turns": False, "infer.views.combine": "mean", "infer.dtype": "float32",
        "decode.kind": "none", "evaluate.scores": ("clefts", "jaccard"), "evaluate.cleft_nm": 200.0,
    })
    settings = settings_of("cremi_clefts")
    assert [volume.image for volume in settings.data.train] == [f"im_{letter}.h5:main" for letter in "ABC"]
    assert [volume.label for volume in settings.data.test] == [f"syn_{letter}.h5:main" for letter in "ABC"]
    assert [target.kind for target in settings.target] == ["binary"]


def test_snemi_neurons_is_the_documented_recipe():
    check("snemi_neurons", {
        "data.patch": (16, 224, 224), "data.pad": (8, 128, 128), "data.resolution": (30.0, 6.0, 6.0),
        "data.folder": "datasets/SNEMI",
        "data.train.0.image": "train-input.tif", "data.train.0.label": "train-labels.tif",
        "data.test.0.image": "test-input.tif", "data.test.0.label": "test-labels.h5", "data.validation": (),
        "model.name": "rsunet", "model.out_channels": 12, "model.rsunet.width": (18, 36, 48, 64, 80),
        "model.rsunet.norm": "group", "model.rsunet.groups": 4, "model.rsunet.act": "elu",
        "model.rsunet.down": ((1, 2, 2),) * 4, "model.rsunet.depth_2d": 1, "model.rsunet.kernel_2d": (1, 3, 3),
        "labels.erosion": 1, "target.0.kind": "affinity", "target.0.border": "ignore",
        "target.0.background": "negative", "loss.terms.0.kind": "per_channel_bce",
        "loss.terms.0.positive_weight": "auto", "loss.terms.0.weight": 1.0,
        "augment.exclusive": ("misalignment", "missing_section", "blur", "missing_part"),
        "augment.flip.probability": (0.5, 0.5, 0.5), "augment.turn.probability": 0.5,
        "augment.elastic.probability": 0.7, "augment.elastic.sigma": (4.0, 8.0),
        "augment.elastic.magnitude": (8.0, 16.0), "augment.noise.probability": 0.3, "augment.noise.deviation": 0.05,
        "augment.shift.probability": 0.7, "augment.shift.offset": 0.2, "augment.gamma.probability": 0.7,
        "augment.gamma.range": (0.5, 1.5), "augment.misalignment.probability": 1.0,
        "augment.misalignment.displacement": 17, "augment.missing_section.probability": 1.0,
        "augment.missing_section.sections": (0, 5), "augment.blur.probability": 1.0, "augment.blur.sections": (0, 5),
        "augment.missing_part.probability": 0.2, "augment.missing_part.size": (0.1, 0.25),
        "train.steps": 100 * 1000, "train.batch": 4, "train.precision": "fp16", "train.optimizer.lr": 3e-4,
        "train.optimizer.weight_decay": 0.01, "train.schedule.kind": "warmup_cosine", "train.schedule.warmup": 3000,
        "train.schedule.warmup_factor": 1e-5, "train.schedule.least": 1e-6, "train.schedule.every": 1000,
        "train.ema.decay": 0.0, "train.save.monitor": "loss/train", "train.save.best": 3, "train.log_steps": 50,
        "train.preview_steps": 10_000, "infer.window": (16, 224, 224), "infer.overlap": 0.5, "infer.blend": "bump",
        "infer.pad": (8, 128, 128), "infer.batch": 16, "infer.select": (0, 1, 2), "infer.views.flips": (),
        "infer.activation.0.kind": "sigmoid", "decode.kind": "affinities", "decode.score": "aff85_his256",
        "decode.threshold": 0.5, "decode.low": 0.1, "decode.high": 0.999, "decode.dust_size": 800,
        "decode.dust_affinity": 0.3, "decode.remove_size": 600, "evaluate.convention": "snemi3d",
    })
    settings = settings_of("snemi_neurons")
    assert settings.target[0].offsets == (
        (0, 0, -1), (0, -1, 0), (-1, 0, 0), (-2, 0, 0), (-3, 0, 0), (-4, 0, 0), (0, 0, -3), (0, 0, -9), (0, 0, -27),
        (0, -3, 0), (0, -9, 0), (0, -27, 0))
    assert "rand" in settings.evaluate.scores


def test_the_learning_rate_of_snemi_neurons_is_the_documented_curve():
    from emcore.engine.schedule import learning_rate

    train = settings_of("snemi_neurons").train
    for epoch, wanted in {0: 3e-9, 1: 9.9978e-5, 2: 1.99805e-4, 3: 2.99337e-4, 50: 1.505e-4, 99: 1.07377e-6}.items():
        for step in (1000 * epoch, 1000 * epoch + 999):
            assert math.isclose(learning_rate(train.schedule, train.optimizer.lr, step, train.steps), wanted,
                                rel_tol=1e-4)


def test_polarity_is_the_cleft_recipe_with_three_channels_and_its_decoder():
    check("emr50_polarity", {
        "model.out_channels": 3, "target.0.kind": "polarity", "target.0.exclusive": False, "loss.terms.0.kind": "bce",
        "loss.terms.0.weight": 1.0, "loss.terms.0.prediction": "0:3", "loss.terms.0.target": "0:3",
        "decode.kind": "polarity", "decode.exclusive": False, "decode.threshold": 0.5, "decode.small": 128,
        "data.reject_below": 1000, "data.reject_probability": 0.95, "evaluate.scores": ("synapses", "instances"),
    })
    check("emr50_polarity_exclusive", {
        "model.out_channels": 3, "target.0.exclusive": True, "loss.terms.0.kind": "weighted_ce",
        "infer.activation.0.kind": "softmax", "decode.exclusive": True, "data.reject_below": 1000,
    })
    clefts = settings_of("cremi_clefts")
    for name in ("emr50_polarity", "emr50_polarity_exclusive"):
        settings = settings_of(name)
        assert len(settings.loss.terms) == 1
        assert settings.data.patch == clefts.data.patch == (18, 256, 256)
        assert settings.augment == clefts.augment
        assert settings.train == clefts.train
        assert settings.model.rsunet == clefts.model.rsunet
        assert (settings.infer.window, settings.infer.views) == (clefts.infer.window, clefts.infer.views)


@pytest.mark.parametrize(("layout", "recipes"), [
    ("cremi-clefts", ["cremi_clefts"]), ("polarity", ["emr50_polarity", "emr50_polarity_exclusive"]),
    ("snemi", ["snemi_neurons"]),
])
def test_synth_writes_the_files_that_a_recipe_names(layout, recipes, tmp_path):
    if layout == "snemi":
        pytest.importorskip("tifffile")
    tissue = synthesize((8, 40, 40), (40.0, 16.0, 16.0), 0)
    made = {str(path.relative_to(tmp_path)) for sample in range(2 if layout in ("snemi", "polarity") else 3)
            for path in write_layout(tmp_path, layout, tissue, sample)}
    for name in recipes:
        assert named_files(settings_of(name)) <= made, name
