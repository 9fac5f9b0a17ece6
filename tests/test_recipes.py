"""Recipes: they run from training to scores, they say what the published systems say, and files can build on files."""

import math
import re
from pathlib import Path

import pytest

from emcore import config
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.smoke import reduced, smoke
from emcore.synth import synthesize, write_layout
from emcore.volumes import create_volume

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").rglob("*.toml"))
FAST = ("demo", "emr50_polarity", "dbmim_finetune_r33")  # the others that run every day are marked slow
# these have among them every part of the others, which are marked long
DAILY = (*FAST, "banis_neurons", "vnc_mitochondria", "isbi2012_membranes", "mito_instances", "snemi_neurons_multitask",
         "cremi_clefts_v1", "dbmim_pretrain_r16", "dbmim_pretrain_r34", "synth_neurons", "synth_synapses")
BEFORE = ("dbmim_pretrain_r33",)  # one of these begins with it


def mark_of(path):
    if path.stem not in DAILY:
        return [pytest.mark.long]
    return [] if path.stem in FAST else [pytest.mark.slow]


def settings_of(name):
    return config.load(Settings, next(path for path in RECIPES if path.stem == name))


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


def test_recipes_of_every_day_have_every_part_that_a_recipe_has():
    def parts(path):
        settings = config.load(Settings, path)
        chosen = (settings.model, settings.decode, settings.train.schedule, *settings.target, *settings.loss.terms,
                  *([settings.pretrain.policy] if settings.pretrain else []))
        return {type(part) for part in chosen} | set(settings.evaluate.scores)

    daily = set().union(*(parts(path) for path in RECIPES if path.stem in (*DAILY, *BEFORE)))
    assert set().union(*map(parts, RECIPES)) <= daily


@pytest.mark.parametrize("path", [pytest.param(path, marks=mark_of(path)) for path in RECIPES],
                         ids=lambda path: path.stem)
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
def test_a_recipe_says_in_five_lines_what_it_takes_and_what_to_expect(path):
    lines = re.match(r"(?:#.*\n)+", path.read_text())[0].splitlines()
    assert len(lines) <= 5
    head = " ".join(line[1:].strip() for line in lines)
    told = re.fullmatch(r".+[.] Data: (.+) Hardware: (.+) Time: (.+) Memory: ([\d.]+ GB.*) Expect: (.+)", head)
    assert told, f"the head of {path.name} does not say data, hardware, time, memory and what to expect, in this order"
    page = re.search(r"\b(docs/[\w/]+|README)[.]md", told[5])
    assert page, f"the head of {path.name} names no page"
    assert (ROOT / page[0]).is_file()
    assert config.load(Settings, path).name == path.stem


def test_a_line_for_several_gpus_gives_each_of_them_the_documented_batch():
    documented = {"demo": 2, "cremi_clefts": 4, "cremi_clefts_v1": 2, "emr50_polarity": 4, "snemi_neurons": 2,
                  "dbmim_pretrain_r33": 2}
    found = {}
    for page in (ROOT / "README.md", *(ROOT / "docs" / "tutorials").glob("*.md")):
        for gpus, name, more in re.findall(r"torchrun --nproc-per-node=(\d+) train\.py --cfg \S*/(\w+)\.toml([^#`\n]*)",
                                           page.read_text()):
            settings = config.load(Settings, next(path for path in RECIPES if path.stem == name), more.split())
            found[name] = settings.train.batch / int(gpus)
    assert found == documented


def test_the_main_polarity_recipe_begins_with_the_ones_that_learned_the_direction():
    words = (ROOT / "configs" / "emr50" / "emr50_polarity.toml").read_text().split(".")[0]
    assert "emr50_polarity_exclusive" in words
    assert "emr50_polarity_small" in words


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_reduced_recipe_keeps_what_makes_it_that_recipe(path):
    whole = config.load(Settings, path)
    small = reduced(whole, Path("elsewhere"))
    for name in ("augment", "labels", "target", "loss", "decode", "seed", "name"):
        assert getattr(small, name) == getattr(whole, name), name
    assert small.evaluate.scores == whole.evaluate.scores
    assert small.infer.views == whole.infer.views
    assert type(small.model) is type(whole.model)
    assert (small.model.heads, small.model.layers) == (whole.model.heads, whole.model.layers)
    assert getattr(small.model, "deep_supervision", None) == getattr(whole.model, "deep_supervision", None)
    assert small.train.optimizer == whole.train.optimizer
    assert type(small.train.schedule) is type(whole.train.schedule)
    assert (small.pretrain is None) is (whole.pretrain is None)
    assert all(few <= many for few, many in zip(small.data.patch, whole.data.patch))
    assert math.prod(small.data.patch) <= 2**16


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
        "train.save.window": 1280, "train.validate.steps": 1280,
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
        "train.save.window": 1000,
        "train.preview_steps": 10_000, "infer.window": (16, 224, 224), "infer.overlap": 0.5, "infer.blend": "bump",
        "infer.pad": (8, 128, 128), "infer.batch": 16, "infer.select": (), "infer.views.flips": (),
        "infer.activation.0.kind": "sigmoid", "decode.kind": "affinities", "decode.channels": (),
        "decode.statistic": "aff85_his256", "decode.threshold": 0.5, "decode.low": 0.1, "decode.high": 0.999,
        "decode.dust_size": 800, "decode.dust_affinity": 0.3, "decode.remove_size": 600, "decode.link.iou": 0.5,
        "decode.link.best_buddy": True, "decode.link.one_sided": 0.8, "decode.link.one_sided_size": 100,
        "evaluate.convention": "snemi3d", "tune.volumes": "test", "tune.objective": "adapted_rand",
        "tune.space.threshold": {"min": 0.1, "max": 0.9, "step": 0.1},
        "tune.space.low": {"min": 0.0, "max": 0.5, "step": 0.1},
        "tune.space.high": {"min": 0.7, "max": 1.0, "step": 0.1},
        "tune.space.statistic": [f"aff{share}_his256" for share in (85, 75, 50, 25, 15)],
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
        "loss.terms.0.positive_weight": "auto",
        "decode.kind": "polarity", "decode.exclusive": False, "decode.threshold": 0.5, "decode.small": 128,
        "data.reject_below": 1000, "data.reject_probability": 0.95, "evaluate.scores": ("synapses", "instances"),
        "evaluate.synapse_iou": 0.2, "evaluate.synapse_size": 300, "evaluate.synapse_margin": 14,
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


def test_the_variants_of_snemi_neurons_differ_as_documented():
    check("snemi_neurons_mednext", {
        "model.name": "mednext", "model.mednext.size": "S", "model.mednext.kernel": 3, "model.deep_supervision": True,
        "data.patch": (32, 160, 160), "data.pad": (16, 80, 80), "data.train_part": (0.0, 0.8),
        "data.validation_part": (0.8, 1.0), "data.split_axis": 0, "train.batch": 12 * 4, "train.accumulate": 4,
        "train.steps": 200 * 1000, "train.precision": "bf16", "train.ema.decay": 0.999, "train.ema.warmup": 1000,
        "train.save.monitor": "loss/val", "infer.batch": 4, "infer.window": (32, 160, 160),
        "infer.views.flips": (0, 1, 2), "infer.views.turns": True, "infer.views.combine": "min",
        "loss.levels": (1.0, 0.5, 0.25, 0.125, 0.0625),
    })
    check("snemi_neurons_sdt", {
        "model.name": "mednext", "model.out_channels": 10, "target.1.kind": "skeleton_distance", "target.1.alpha": 0.8,
        "data.train.0.skeleton": "train-labels_skeleton.h5", "loss.uncertainty": True,
        "loss.terms.0.kind": "per_channel_bce", "loss.terms.0.prediction": "0:-1", "loss.terms.1.kind": "smooth_l1",
        "loss.terms.1.tanh": True, "loss.terms.1.prediction": "-1:", "train.ema.decay": 0.0,
        "infer.activation.0.channels": "0:-1", "infer.activation.0.kind": "sigmoid",
        "infer.activation.1.channels": "-1:", "infer.activation.1.kind": "tanh", "infer.pad": (16, 80, 80),
        "infer.views.flips": (), "infer.views.turns": False, "decode.threshold": 0.4,
        "decode.statistic": "aff85_his256", "decode.low": 0.001, "decode.high": 0.999, "decode.dust_size": 100,
        "decode.dust_affinity": 0.0,
        "decode.remove_size": 50,
    })
    check("snemi_neurons_multitask", {
        "model.mednext.heads": (("aff_r1", 3), ("aff_r5", 3), ("aff_r9", 3), ("sdt", 1)),
        "model.mednext.head_blocks": 1, "loss.uncertainty": True, "infer.select": (0, 1, 2),
        "infer.views.flips": (0, 1, 2), "infer.views.turns": True, "infer.views.combine": "min",
        "decode.threshold": 0.4, "decode.low": 0.01, "decode.high": 0.99, "decode.boundary": 0.2,
        "decode.dust_size": 800, "decode.dust_affinity": 0.3, "decode.remove_size": 600,
    })
    nine = tuple(tuple(-reach if axis == along else 0 for axis in range(3)) for reach in (1, 5, 9)
                 for along in (2, 1, 0))
    for name in ("snemi_neurons_sdt", "snemi_neurons_multitask"):
        assert settings_of(name).target[0].offsets == nine
    assert [term.head for term in settings_of("snemi_neurons_multitask").loss.terms] == [
        "aff_r1", "aff_r5", "aff_r9", "sdt"]


def test_cremi_clefts_v1_is_the_tutorial_of_2019():
    check("cremi_clefts_v1", {
        "data.patch": (8, 256, 256), "data.normalise": "divide", "data.divide": 255.0, "data.choose": "positions",
        "data.reject_below": 101, "data.reject_probability": 0.9, "model.name": "unet_v1", "model.out_channels": 1,
        "model.unet_v1.filters": (32, 64, 128, 256, 256), "loss.terms.0.kind": "legacy_bce",
        "loss.terms.0.balance": "positive", "train.steps": 100_001, "train.batch": 8, "train.optimizer.kind": "adam",
        "train.optimizer.lr": 1e-3, "train.optimizer.weight_decay": 1e-6, "train.optimizer.amsgrad": True,
        "train.optimizer.decay_norms": True, "train.optimizer.clip": 0.0, "train.schedule.kind": "plateau",
        "train.schedule.factor": 0.1, "train.schedule.patience": 1000, "train.schedule.window": 10,
        "train.schedule.least": 1e-7, "train.save.steps": 10_000, "train.ema.decay": 0.0, "train.precision": "fp32",
        "augment.rotate.probability": 1.0, "augment.scale.probability": 0.5, "augment.scale.factor": (0.8, 1.2),
        "augment.elastic.probability": 0.75, "augment.elastic.sigma": (4.0, 4.0), "augment.elastic.flat": True,
        "augment.elastic.magnitude": (12.0, 12.0), "augment.contrast.probability": 0.75,
        "augment.contrast.section_ratio": 0.5, "augment.contrast.gamma": (0.5, 2.0),
        "augment.contrast.gain": (0.85, 1.15), "augment.contrast.bias": (-0.15, 0.15), "augment.fold.probability": 0.9,
        "augment.fold.width": 40, "augment.fold.patches": 0.9,
        "augment.deleted_section.probability": 0.5, "augment.deleted_section.sections": 2,
        "augment.misalignment.probability": 1.0, "augment.misalignment.displacement": 8, "labels.smooth": True,
        "infer.window": (8, 256, 256), "infer.pad": (4, 128, 128), "infer.overlap": 0.5, "infer.blend": "gaussian",
        "infer.batch": 16, "infer.activation.0.kind": "none", "infer.dtype": "uint8",
    })
    settings = settings_of("cremi_clefts_v1")
    assert [(volume.image, volume.label) for volume in settings.data.train] == [
        (f"images/im_{letter}_v2_200.h5:main", f"gt-syn/syn_{letter}_v2_200.h5:main") for letter in "ABC"]


# ---- dbMiM: arm -> seed, samples a step, steps, edge share, power and noise, structure and membrane weight, policy

PRETRAINED = {
    "r16": (176, 16, 160_000, 0.0, None, 0.2, 1.35, "patch"), "r20": (220, 8, 240_000, 0.0, None, 0.2, 1.35, "patch"),
    "r23_public": (230, 8, 160_000, 0.0, None, 0.0, 0.0, "none"),
    "r23_full": (231, 8, 160_000, 0.0, None, 0.0, 0.0, "none"),
    "r29": (292, 8, 160_000, 1.0, (1.5, 0.025), 0.2, 1.35, "none"),
    "r30": (292, 8, 160_000, 1.0, (1.5, 0.025), 0.0, 0.0, "none"),
    "r31": (293, 8, 160_000, 1.0, (1.5, 0.025), 0.2, 1.35, "none"),
    "r32": (294, 8, 160_000, 0.5, (1.25, 0.05), 0.2, 1.35, "none"),
    "r33": (295, 8, 160_000, 0.5, (1.25, 0.05), 0.2, 1.35, "none"),
    "r34": (296, 8, 160_000, 0.5, (1.25, 0.05), 0.2, 1.35, "adaptive"),
    "r35": (297, 8, 160_000, 0.5, (1.25, 0.05), 0.2, 1.35, "adaptive"),
}
FULL = ("r20", "r23_full", "r31", "r33", "r35")
POLICIES = {
    "none": {},
    "patch": {"least_ratio": 0.4, "most_ratio": 0.9, "lr": 5e-4, "weight": 0.05, "warmup": 0, "freeze": 40_000,
              "use_frozen": False, "entropy_coefficient": 0.01, "value_coefficient": 0.5, "ratio_coefficient": 0.25},
    "adaptive": {"ratios": (0.625, 0.75, 0.875), "edge_fractions": (0.25, 0.5, 0.75), "lr": 2e-4, "weight": 0.02,
                 "entropy_coefficient": 0.02, "value_coefficient": 0.25, "ratio_coefficient": 0.5, "warmup": 10_000,
                 "freeze": 40_000, "use_frozen": True},
}


@pytest.mark.parametrize("arm", PRETRAINED)
def test_a_pretraining_arm_is_as_published(arm):
    seed, batch, steps, share, edges, structure, membrane, policy = PRETRAINED[arm]
    check(f"dbmim_pretrain_{arm}", {
        "seed": seed, "train.batch": batch, "train.steps": steps, "pretrain.edge_fraction": share,
        "pretrain.structure_weight": structure, "pretrain.membrane_weight": membrane, "pretrain.policy.kind": policy,
        **{f"pretrain.policy.{key}": value for key, value in POLICIES[policy].items()},
        "data.patch": (32, 160, 160), "data.percentiles": (1.0, 99.0), "data.normalise_by": "patch",
        "model.name": "masked_autoencoder", "model.transformer.patch": (4, 16, 16),
        "model.transformer.width": 192, "model.transformer.depth": 6, "model.transformer.heads": 6,
        "pretrain.decoder_width": 192, "pretrain.mask_ratio": 0.75,
        "pretrain.structure_axis_weights": (0.5, 1.0, 1.0), "pretrain.membrane_axis_weights": (0.25, 1.0, 1.0),
        "pretrain.membrane_clip": 5.0, "train.optimizer.kind": "adamw", "train.optimizer.lr": 1.5e-4,
        "train.optimizer.weight_decay": 0.05, "train.optimizer.decay_norms": True, "train.optimizer.clip": 1.0,
        "train.schedule.kind": "constant", "train.precision": "fp16", "train.log_steps": 20, "train.save.steps": 2000,
        "augment.turn.probability": 0.75, "augment.flip.probability": (0.2, 0.5, 0.5),
        "augment.noise.probability": 0.25, "augment.noise.deviation": (0.025, 0.025),
        "augment.contrast.probability": 0.35, "augment.contrast.gain": (0.85, 1.15),
        "augment.contrast.bias": (-0.05, 0.05), "augment.gamma.probability": 0.35, "augment.gamma.range": (0.7, 1.5),
    })
    settings = settings_of(f"dbmim_pretrain_{arm}")
    if edges:
        assert (settings.pretrain.edge_power, settings.pretrain.edge_noise) == edges
    images = [volume.image for volume in settings.data.train]
    assert images[:3] == [f"CREMI/sample_{letter}_20160501.hdf:volumes/raw" for letter in "ABC"]
    assert any("EM_pretrain_data" in image for image in images) is (arm in FULL)
    assert len(images) == (4 if arm in FULL else 7)


# arm -> seed, steps, what it starts from and its step
FINETUNED = {
    "scratch": (192, 12_000, None, 0), "r17": (191, 12_000, "r16", 160_000), "r20": (201, 12_000, "r20", 60_000),
    "r23_public": (193, 12_000, "r23_public", 160_000), "r23_full": (213, 12_000, "r23_full", 160_000),
    "r29": (292, 12_000, "r29", 160_000), "r30": (292, 12_000, "r30", 160_000), "r31": (293, 12_000, "r31", 160_000),
    "r32": (294, 12_000, "r32", 160_000), "r33": (295, 12_000, "r33", 160_000), "r34": (296, 12_000, "r34", 160_000),
    "r35": (297, 12_000, "r35", 160_000), "r48": (309, 20_000, "r16", 160_000),
}


@pytest.mark.parametrize("arm", FINETUNED)
def test_a_finetuning_arm_is_as_published(arm):
    seed, steps, source, at = FINETUNED[arm]
    check(f"dbmim_finetune_{arm}", {
        "seed": seed, "train.steps": steps, "train.batch": 4, "data.patch": (32, 160, 160),
        "data.percentiles": (1.0, 99.0), "model.name": "unetr", "model.out_channels": 3,
        "model.transformer.patch": (4, 16, 16), "model.transformer.width": 192, "model.transformer.depth": 6,
        "model.transformer.heads": 6, "model.transformer.dropout": 0.05, "model.transformer.features": 32,
        "model.transformer.head": "em", "model.transformer.head_depth": 2,
        "model.transformer.head_bias": (-0.2, 0.0, 0.0), "labels.erosion": 1, "target.0.border": "replicate",
        "target.0.background": "negative", "target.0.offsets": ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
        "loss.terms.0.kind": "sigmoid_mse", "loss.terms.0.channel_weights": (1.35, 1.0, 1.0), "loss.clamp": 0.0,
        "loss.terms.0.membrane_weight": 0.75, "loss.terms.0.membrane_axis_weights": (0.25, 1.0, 1.0),
        "loss.terms.0.membrane_clip": 4.0, "train.optimizer.kind": "adamw", "train.optimizer.lr": 8e-5,
        "train.optimizer.encoder_lr": 1e-5, "train.optimizer.weight_decay": 0.01, "train.optimizer.decay_norms": True,
        "train.optimizer.clip": 1.0, "train.schedule.kind": "constant", "train.precision": "fp16",
        "train.log_steps": 20, "train.save.steps": 1000, "augment.noise.deviation": (0.035, 0.035),
        "augment.turn.probability": 0.75, "augment.flip.probability": (0.2, 0.5, 0.5),
        "augment.gamma.range": (0.7, 1.5), "infer.window": (32, 160, 160), "infer.overlap": 0.5,
        "infer.blend": "constant", "infer.batch": 1, "decode.fragments": "maxima_distance-0.5",
        "decode.statistic": "aff50_his256", "evaluate.border_xy": 1, "evaluate.border_z": 0,
        "evaluate.convention": "skimage", "evaluate.sweep.thresholds": (0.35, 0.4, 0.45, 0.5, 0.55),
        "evaluate.sweep.biases": ((-0.5, -1.0, -1.0), (-0.25, -0.5, -0.5), (0.0, 0.0, 0.0)),
        "evaluate.sweep.statistics": ("aff50_his256",),
    })
    train = settings_of(f"dbmim_finetune_{arm}").train
    assert train.start_from == (f"outputs/dbmim_pretrain_{source}/checkpoints/step_{at:09d}.pt" if source else "")
    assert train.start_include == (("pos_embed", "patch_embed", "encoder_blocks", "norm") if source else ())
    if source:  # the checkpoint it names is one that the pretraining run keeps
        before = settings_of(f"dbmim_pretrain_{source}").train
        assert at == before.steps or at in before.save.at


@pytest.mark.parametrize(("layout", "recipes"), [
    ("cremi-clefts", ["cremi_clefts"]),
    ("polarity", ["emr50_polarity", "emr50_polarity_exclusive", "emr50_polarity_small"]),
    ("snemi", ["snemi_neurons", "snemi_neurons_mednext"]), ("cremi", ["dbmim_finetune_scratch", "dbmim_finetune_r17"]),
    ("plain", ["banis_neurons", "mito_instances"]),
])
def test_synth_writes_the_files_that_a_recipe_names(layout, recipes, tmp_path):
    if layout == "snemi":
        pytest.importorskip("tifffile")
    tissue = synthesize((8, 40, 40), (40.0, 16.0, 16.0), 0)
    made = {str(path.relative_to(tmp_path)) for sample in range(2 if layout in ("snemi", "polarity") else 3)
            for path in write_layout(tmp_path, layout, tissue, sample)}
    for name in recipes:
        assert named_files(settings_of(name)) <= made, name


def test_a_pattern_takes_every_file_that_it_names(tmp_path):
    from emcore.data.sources import open_sources
    from emcore.settings.data import Data, VolumeFiles

    for place, value in (("b/two", 2), ("one", 1), ("b/c/three", 3)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        with create_volume(f"{tmp_path / place}.h5:raw", (4, 8, 8), "uint8") as out:
            out[...] = value
    data = Data(folder=str(tmp_path), storage="lazy", train=(VolumeFiles("**/*.h5:raw", weight=2.0),))
    found = open_sources(data, "train")
    assert [(source.name, source.weight, int(source.arrays["image"][0, 0, 0])) for source in found] == [
        ("three", 2.0, 3), ("two", 2.0, 2), ("one", 2.0, 1)]
    with pytest.raises(InputError, match="no file is named like"):
        open_sources(Data(folder=str(tmp_path), train=(VolumeFiles("*.tif"),)), "train")
    with pytest.raises(InputError, match="names many files, so nothing can belong to it"):
        open_sources(Data(folder=str(tmp_path), train=(VolumeFiles("*.h5", label="one.h5"),)), "train")
