"""Settings: typed, checked, explained, and the same after a round trip through TOML."""

import dataclasses
import subprocess
import sys
import tomllib
from typing import Literal

import pytest

from emcore import config
from emcore.errors import InputError


@dataclasses.dataclass(frozen=True)
class Term:
    kind: Literal["bce", "dice"]  # which loss
    weight: float = 1.0  # factor in the sum
    channels: tuple[int, int] | None = None  # first and last channel; none means all


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int = 100  # optimizer steps
    lr: float = 1e-3  # learning rate at the top
    patch: tuple[int, int, int] = (18, 256, 256)  # z, y, x, voxels
    compile: bool = True  # torch.compile the net
    sections: int | tuple[int, int] = 2  # how many sections, or a range
    note: str = ""  # free text
    resume: str | None = None  # a checkpoint; none starts anew


@dataclasses.dataclass(frozen=True)
class Coarse:
    size: int = 3  # of a brush


@dataclasses.dataclass(frozen=True)
class Fine(Coarse):
    hairs: int = 9  # of a brush


@dataclasses.dataclass(frozen=True)
class Dull:
    kind: Literal["dull"] = "dull"  # nothing is painted


@dataclasses.dataclass(frozen=True)
class Water:
    kind: Literal["water"] = "water"  # thin
    drops: int = 5  # at once
    hue: float = 0.5  # of the colour
    brush: Fine = Fine()  # that is taken


@dataclasses.dataclass(frozen=True)
class Oil:
    kind: Literal["oil"] = "oil"  # thick
    hue: float = 0.25  # of the colour
    brush: Coarse = Coarse()  # that is taken
    layers: int | None = None  # dried one by one


Paint = Dull | Water | Oil


@dataclasses.dataclass(frozen=True)
class Toy:
    name: str  # of the run; its folder in outputs/
    train: Train = Train()  # the training loop
    loss: tuple[Term, ...] = (Term("bce"), Term("dice", 0.5))  # summed
    extra: Train | None = None  # a second loop
    paint: Paint = Dull()  # that is used
    more: tuple[Paint, ...] = (Oil(),)  # that is mixed in


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def refused(match, *overrides, path=None):
    with pytest.raises(InputError, match=match) as caught:
        config.load(Toy, path, ["name=x", *overrides])
    assert "\n" not in str(caught.value)


def test_defaults_file_and_overrides_are_laid_over_each_other_in_that_order(tmp_path):
    path = written(tmp_path, 'name = "a"\n[train]\nsteps = 7\nlr = 1\n')
    settings = config.load(Toy, path, ["--train.lr=3e-4", "train.note=a=b", "loss.1.weight=2"])
    assert settings.train == Train(steps=7, lr=3e-4, note="a=b")
    assert settings.loss[1] == Term("dice", 2.0)
    assert config.load(Toy, path).train.lr == 1.0


def test_an_override_is_read_by_the_type_of_its_setting():
    settings = config.load(Toy, None, [
        "name=12", "train.patch=[1, 2, 3]", "train.sections=[0, 5]", "train.compile=False", "train.resume=none",
        "loss.0.channels=[0, 2]"])
    assert settings.name == "12"
    assert settings.train.patch == (1, 2, 3)
    assert settings.train.sections == (0, 5)
    assert settings.train.compile is False
    assert settings.train.resume is None
    assert settings.loss[0].channels == (0, 2)
    assert config.load(Toy, None, ["name=x", "train.sections=3", "extra.steps=4"]).extra == Train(steps=4)


def test_a_list_of_tables_in_the_file_replaces_the_default_list(tmp_path):
    path = written(tmp_path, 'name = "a"\n[[loss]]\nkind = "dice"\n')
    assert config.load(Toy, path).loss == (Term("dice"),)


def test_a_wrong_setting_is_told_in_one_sentence(tmp_path):
    refused("unknown setting train.pach; did you mean train.patch?", "train.pach=[1,2,3]")
    refused("unknown setting lr; did you mean train.lr?", "lr=1")
    refused("unknown setting zzz; the top level has name, train, loss, extra, paint, more", "zzz=1")
    refused(r"train.patch needs 3 values, got 2: \[1, 2\]", "train.patch=[1, 2]")
    refused("train.steps must be int, got 1000.0", "train.steps=1000.0")
    refused("train.steps must be int, got True", "train.steps=true")
    refused("train.lr must be float, got 'fast'", "train.lr=fast")
    refused("train.lr must be a number, got nan", "train.lr=nan")
    refused(r"train.sections must be int or \[int, int\], got 1.5", "train.sections=1.5")
    refused("loss.0.kind must be one of 'bce', 'dice', got 'dise'; did you mean 'dice'?", "loss.0.kind=dise")
    refused("loss is a list of 2 tables, numbered from 0: write loss.0.setting=value; got loss.5.weight",
            "loss.5.weight=1")
    refused("loss is a list of 2 tables", "loss.0=1")
    refused("train.lr is a single value; there is no train.lr.x", "train.lr.x=1")
    refused("an override reads key=value", "train.lr")
    refused("train must be a table, got 3", "train=3")
    with pytest.raises(InputError, match=r"missing setting name \(of the run; its folder in outputs/\)"):
        config.load(Toy)
    with pytest.raises(InputError, match=r"no config file .*absent.toml"):
        config.load(Toy, tmp_path / "absent.toml")
    with pytest.raises(InputError, match="is not valid TOML"):
        config.load(Toy, written(tmp_path, "name = \n"))
    with pytest.raises(InputError, match="cannot read the config"):
        config.load(Toy, tmp_path)


def test_a_setting_of_another_kind_is_refused_with_the_kind_it_belongs_to(tmp_path):
    refused("^paint.drops belongs to paint.kind = water; here it is dull$", "paint.drops=3")
    refused("^paint.hue belongs to paint.kind = water or oil; here it is dull$", "paint.hue=0.1")
    refused("^more.0.drops belongs to more.0.kind = water; here it is oil$", "more.0.drops=3")
    refused("^paint.brush.hairs belongs to paint.kind = water; here it is oil$", "paint.kind=oil",
            "paint.brush.hairs=3")
    refused("paint.kind must be one of 'dull', 'water', 'oil', got 'oils'; did you mean 'oil'?", "paint.kind=oils")
    refused("unknown setting paint.drop; did you mean paint.drops?", "paint.kind=water", "paint.drop=3")
    for text, says in (
            ('[paint]\nkind = "oil"\ndrops = 3\n', "^paint.drops belongs to paint.kind = water; here it is oil$"),
            ('[paint]\nkind = "oil"\n[paint.brush]\nhairs = 3\n', "^paint.brush.hairs belongs to paint.kind = water"),
            ('[[more]]\nkind = "dull"\n[[more]]\ndrops = 1\n', "^more.1.drops belongs to more.1.kind = water")):
        refused(says, path=written(tmp_path, f'name = "a"\n{text}'))


def test_another_kind_keeps_what_both_have_and_drops_the_rest_of_the_base(tmp_path):
    written(tmp_path, 'name = "a"\n[paint]\nkind = "water"\ndrops = 7\nhue = 0.75\n[paint.brush]\nsize = 4\n'
            'hairs = 1\n[[more]]\nkind = "water"\ndrops = 7\nhue = 0.125\n').rename(tmp_path / "base.toml")
    path = written(tmp_path, 'base = "base.toml"\n[paint]\nkind = "oil"\nlayers = 2\n')
    assert config.load(Toy, path).paint == Oil(hue=0.75, brush=Coarse(4), layers=2)
    base = tmp_path / "base.toml"
    overrides = ["paint.layers=2", "paint.hue=0.5", "paint.kind=oil", "more.0.kind=oil"]
    for order in (overrides, overrides[::-1]):
        settings = config.load(Toy, base, order)
        assert settings.paint == Oil(hue=0.5, brush=Coarse(4), layers=2)
        assert settings.more == (Oil(hue=0.125),)
    assert config.load(Toy, None, ["name=a", "paint.kind=water"]).paint == Water()  # the defaults are its own
    assert config.load(Toy, None, ["name=a", "paint.kind=water", "paint.kind=oil"]).paint == Oil()
    assert config.load(Toy, base, ["paint.brush.size=5", 'paint={kind = "oil"}']).paint == Oil()


def test_tables_that_an_older_version_stored_whole_are_translated(tmp_path):
    whole = {"kind": "oil", "drops": 5, "hue": 0.75, "brush": {"size": 4, "hairs": 9}}
    stored = {"name": "a", "paint": whole, "more": [whole, {**whole, "kind": "dull"}]}
    settings = Toy("a", paint=Oil(hue=0.75, brush=Coarse(4)),
                   more=(Oil(hue=0.75, brush=Coarse(4)), Dull()))
    assert config.from_table(Toy, stored) == settings
    inline = '{kind = "oil", drops = 5, hue = 0.75, brush = {size = 4, hairs = 9}}'
    path = written(tmp_path, f'name = "a"\npaint = {inline}\nmore = [{inline}, {inline.replace("oil", "dull")}]\n')
    assert config.load(Toy, path) == settings
    with pytest.raises(InputError, match=r"unknown setting paint\.dops; paint has kind, hue, brush, layers"):
        config.from_table(Toy, {"name": "a", "paint": {**whole, "dops": 1}})


def test_the_resolved_config_is_the_same_after_a_round_trip(tmp_path):
    settings = config.load(Toy, None, ['name=a "quoted" \\ name\té😀\x7f', "train.lr=1e-07", "train.sections=[0, 3]",
                                       "extra.lr=inf"])
    assert config.load(Toy, written(tmp_path, config.to_toml(settings))) == settings
    assert config.from_table(Toy, config.to_table(settings)) == settings
    empty = config.load(Toy, written(tmp_path, 'name = "a"\nloss = []\n'))
    assert empty.loss == ()
    assert config.load(Toy, written(tmp_path, config.to_toml(empty))) == empty


def test_the_description_is_valid_toml_with_every_default_and_comment():
    text = config.describe(Toy)
    assert "# name =  # of the run; its folder in outputs/" in text
    assert 'steps = 100  # optimizer steps' in text
    assert "# channels =  # first and last channel; none means all" in text
    assert "[train]  # the training loop" in text
    table = tomllib.loads(text)
    assert config.from_table(Toy, {"name": "x", **table}) == Toy("x")
    for line in ('[paint]  # that is used', 'kind = "dull"  # nothing is painted', '# [paint]  # that is used',
                 '# kind = "oil"  # thick', "# layers =  # dried one by one", "# [paint.brush]  # that is taken",
                 "# hairs = 9  # of a brush", "[[more]]  # that is mixed in", "# [[more]]  # that is mixed in"):
        assert f"\n{line}\n" in text, line
    assert "loss" not in tomllib.loads(config.describe(Toy, ["train"]))


def test_reading_settings_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import emcore.config, emcore; emcore.config.read_toml"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_older_slabs_of_sections_are_tiles_of_as_many(tmp_path, capsys):
    from emcore.settings import Settings
    from emcore.settings.predict import Infer

    (tmp_path / "old.toml").write_text('name = "a"\n[infer]\nslab = 5\n')
    assert config.load(Settings, tmp_path / "old.toml").infer.tile == (5, 0, 0)
    assert config.load(Settings, tmp_path / "old.toml", ["infer.slab=7"]).infer.tile == (7, 0, 0)
    assert config.from_table(Infer, {"slab": 6, "overlap": 0.25}, "infer") == Infer(tile=(6, 0, 0), overlap=0.25)
    assert config.load(Settings, tmp_path / "old.toml", ["infer.tile=[0,9,9]"]).infer.tile == (0, 9, 9)
