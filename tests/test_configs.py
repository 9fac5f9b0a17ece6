"""Every shipped config loads, builds its net (small) and takes two steps; every setting is explained."""

import dataclasses
import tomllib
import typing
from pathlib import Path

import pytest
import torch

from emcore import config
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
