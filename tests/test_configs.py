"""Every shipped config loads, builds its net (small) and takes two steps; every setting is explained."""

import dataclasses
import re
import tomllib
import typing
from pathlib import Path

import pytest
import torch

from emcore import config
from emcore.config.reading import tell
from emcore.data.augment import augment_batch, check_augment, margin
from emcore.engine.arithmetic.mode import Mode
from emcore.engine.optimizer import build_optimizer
from emcore.engine.steps import Masked, Supervised
from emcore.errors import InputError
from emcore.settings import READS, Settings
from emcore.smoke import reduced

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").rglob("*.toml"))


def tables(schema):
    yield schema
    for kind in typing.get_type_hints(schema).values():
        for inner in (kind, *typing.get_args(kind)):
            if dataclasses.is_dataclass(inner):
                yield from tables(inner)


def test_every_setting_has_a_comment_that_says_what_it_means():
    for schema in tables(Settings):
        told = config.comments(schema)
        for field in dataclasses.fields(schema):
            assert len(told.get(field.name, "")) > 3, f"{schema.__name__}.{field.name}"


@pytest.mark.parametrize("script", list(READS))
def test_the_printed_settings_are_a_valid_file_that_gives_the_defaults(script, tmp_path):
    text = config.describe(Settings, READS[script])
    assert tomllib.loads(text)
    path = tmp_path / "all.toml"
    path.write_text('name = "x"\n' + text)
    assert config.load(Settings, path) == Settings("x")


def test_a_setting_of_few_words_tells_them():
    text = config.describe(Settings)
    assert 'combine = "mean"  # how the views become one (mean, min or max)\n' in text
    assert re.search(r'^normalise_by = "patch"  # .* \(patch or volume\)$', text, re.MULTILINE)
    assert re.search(r"^overlap = 0.5  # [^()]*$", text, re.MULTILINE)


def test_the_commands_of_the_readme_name_settings_that_exist():
    text = (ROOT / "README.md").read_text()
    overrides = [word for line in text.splitlines() if ".py --cfg" in line for word in line.split() if "=" in word
                 and not word.startswith("--")]
    assert overrides
    config.load(Settings, ROOT / "configs" / "demo.toml", overrides)


def test_a_path_from_before_recipes_had_folders_says_where_the_recipe_is():
    moved = [path for path in SHIPPED if path.parent.name != "configs"]
    assert len(moved) == len(SHIPPED) - 1
    for path in moved:
        with pytest.raises(InputError) as error:
            config.load(Settings, ROOT / "configs" / path.name)
        assert str(error.value) == f"no config file {ROOT / 'configs' / path.name}; of that name there is {path}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_takes_two_steps(path, tmp_path):
    settings = reduced(config.load(Settings, path), tmp_path)
    check_augment(settings.augment, settings.data.patch)
    torch.manual_seed(0)
    task = (Masked if settings.pretrain else Supervised)(settings, Mode("cpu", "fp32", "contiguous", False), (1, 1, 1))
    optimizer = build_optimizer(task, settings.train)
    around = margin(settings.augment, settings.data.patch)
    shape = [p + low + high for p, (low, high) in zip(settings.data.patch, around)]
    weights = [p.detach().clone() for p in task.parameters()]
    for step in range(2):
        batch = augment_batch({
            "image": torch.randint(0, 255, (2, 1, *shape), dtype=torch.uint8), "number": torch.arange(2) + 2 * step,
            "label": torch.randint(0, 9, (2, *shape)).repeat_interleave(4, 3)[..., :shape[2]],
            "statistics": torch.tensor([[0.0, settings.data.divide]] * 2)},
            settings.augment, settings.data, settings.seed)
        loss, terms = task(batch, step)
        assert torch.isfinite(loss)
        assert len(terms) == len(task.columns)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(before, now) for before, now in zip(weights, task.parameters()))


TRAINS = ['data.train=[{image = "a.h5:raw", label = "a.h5:labels"}]']  # only a recipe that learns must fit its net


@pytest.mark.parametrize("says, overrides", [
    ("train.batch must be at least 1; got 0", ["train.batch=0"]),
    ("train.steps must be at least 1; got -5", ["train.steps=-5"]),
    ("train.batch must be a multiple of accumulate, which is 3; got 4", ["train.accumulate=3"]),
    ("train.save.steps must be at least 1; got 0", ["train.save.steps=0"]),
    ("train.ema.decay must be 0 or more and below 1; got 1.0", ["train.ema.decay=1.0"]),
    ("train.optimizer.lr must be above 0; got 0.0", ["train.optimizer.lr=0.0"]),
    ("train.optimizer.momentum belongs to train.optimizer.kind = sgd; here it is adamw",
     ["train.optimizer.momentum=0.5"]),
    ("train.schedule.warmup belongs to train.schedule.kind = warmup_cosine or stable_decay; here it is cosine",
     ["train.schedule.warmup=5"]),
    ("loss.terms.0.gamma belongs to loss.terms.0.kind = focal; here it is bce", ["loss.terms.0.gamma=3.0"]),
    ("target.0.offsets belongs to target.0.kind = affinity; here it is binary", ["target.0.offsets=[[0, 0, -1]]"]),
    ("model.deep_supervision belongs to model.name = rsunet or mednext; here it is unetr",
     ["model.name=unetr", "model.deep_supervision=true"]),
    ("model.transformer.features belongs to model.name = unetr or unetr_light; here it is linear_head",
     ["model.name=linear_head", "model.transformer.features=8"]),
    ("decode.dust_size belongs to decode.kind = affinities; here it is components",
     ["decode.kind=components", "decode.dust_size=5"]),
    ("decode.statistic: unknown statistic 'foo'; there are mean, max, min, aff85_his256",
     ["decode.kind=affinities", "decode.statistic=foo"]),
    ("decode.statistic: statistic 'max5' is the mean of the largest",
     ["decode.kind=affinities", "decode.statistic=max5"]),
    ("decode.fragments: unknown fragments 'basins'; there are watershed, faces, maxima_distance",
     ["decode.kind=affinities", "decode.fragments=basins"]),
    ("decode.fragments: seeds must be one of maxima_distance", ["decode.kind=affinities", "decode.fragments=grid-0"]),
    ("decode.threshold must be between 0 and 1; got 1.5", ["decode.kind=affinities", "decode.threshold=1.5"]),
    ("decode.low must not be above decode.high; got 0.9",
     ["decode.kind=affinities", "decode.low=0.9", "decode.high=0.1"]),
    ("decode.channels must be three different channels", ["decode.kind=affinities", "decode.channels=[0, 1]"]),
    (r"decode.thresholds\[1\] must be between 0 and 1; got 2.0",
     ["decode.kind=components", "decode.thresholds=[0.5, 2.0]"]),
    ("decode.seed_threshold must not be below the foreground's threshold 0.6",
     ["decode.kind=components", "decode.threshold=0.6", "decode.seed_threshold=0.5"]),
    ("decode.thresholds must be three for kind = connected", ["decode.kind=connected", "decode.thresholds=[0.5]"]),
    ("evaluate.sweep.statistics: unknown statistic 'foo'", ['evaluate.sweep={statistics = ["mean", "foo"]}']),
    (r"evaluate.blockwise.chunk\[0\] must be at least 1; got 0", ["evaluate.blockwise.chunk=[0, 4, 4]"]),
    ("infer.batch must be at least 0; got -1", ["infer.batch=-1"]),
    ("tune.confirm must be at least 1; got 0", ["tune.confirm=0"]),
    ("infer.overlap must be 0 or more and below 1; got 1.0", ["infer.overlap=1.0"]),
    ("infer.overlap must be 0 or more and below 1; got -0.5", ["infer.overlap=[0.5,-0.5,0]"]),
    ("augment.noise.probability must be between 0 and 1; got 2.0", ["augment.noise.probability=2.0"]),
    (r"data.patch\[0\] must be at least 1; got 0", ["data.patch=[0, 16, 16]"]),
    ("data.train_part must go from a smaller number to a larger one", ["data.train_part=[0.8, 0.2]"]),
    ("encoder_lr is of the transformer encoder, which model.name = rsunet does not have",
     ["train.optimizer.encoder_lr=1e-4"]),
    (r"masked_autoencoder and the table \[pretrain\] belong together", ["model.name=masked_autoencoder"]),
    (r"a patch of \[18, 250, 256\] does not fit this net, which needs multiples of \[1, 16, 16\]",
     [*TRAINS, "data.patch=[18, 250, 256]"]),
    ("loss.terms.0 compares 3 prediction channels with 1 target channels", [*TRAINS, "model.out_channels=3"]),
    ("loss.terms.0.head is 'a'; the net rsunet has no heads", [*TRAINS, "loss.terms.0.head=a"]),
])
def test_what_cannot_be_is_told_when_the_settings_are_loaded(says, overrides):
    for order in (overrides, overrides[::-1]):
        with pytest.raises(InputError, match=says) as caught:
            config.load(Settings, None, ["name=x", *order])
        assert "\n" not in str(caught.value)


def test_an_old_name_and_an_older_pretraining_are_taken_with_one_sentence_each(tmp_path, capsys):
    tell.cache_clear()
    (tmp_path / "old.toml").write_text(
        'name = "x"\n[data]\npatch = [32, 160, 160]\n[decode]\nkind = "affinities"\nscore = "max"\n'
        '[evaluate.sweep]\nmerges = ["min"]\n[tune.space]\nscore = "mean"\n'
        '[pretrain]\nmask_ratio = 0.5\n[model.transformer]\ndepth = 3\nfeatures = 8\n')
    for _ in range(2):
        settings = config.load(Settings, tmp_path / "old.toml", ['evaluate.sweep.merges=["max"]'])
    assert (settings.decode.statistic, settings.tune.space.statistic) == ("max", "mean")
    assert settings.evaluate.sweep.statistics == ("max",)
    assert (settings.model.name, settings.model.transformer.depth) == ("masked_autoencoder", 3)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    for sentence in ("decode.score is called decode.statistic now", "[pretrain] trains the net masked_autoencoder",
                     "evaluate.sweep.merges is called evaluate.sweep.statistics now",
                     "tune.space.score is called tune.space.statistic now"):
        assert sum(line.startswith(sentence) for line in told) == 1
