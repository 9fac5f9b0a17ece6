"""A run that the version before made, with every setting of every kind in its tables, goes on as if made today."""

import json
import runpy
import shutil
import tarfile
import tomllib
from pathlib import Path

import pytest
import torch

from emcore import config, record, results
from emcore.engine import checkpoint
from emcore.engine.arithmetic.machine import surroundings
from emcore.settings import Settings
from emcore.settings.decode import AffinityDecode
from emcore.settings.model import MaskedAutoencoderModel, RSUNetModel
from emcore.volumes import open_volume
from tests.test_train import train

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("outputs/older/results_step=6")


@pytest.fixture
def place(tmp_path, monkeypatch):
    with tarfile.open(ROOT / "tests" / "data" / "older_run.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(name, *arguments):
    assert runpy.run_path(str(ROOT / f"{name}.py"))["main"](["--cfg", "run.toml", *arguments]) == 0


def tensors(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key != "config":
                yield from tensors(inner, f"{name}/{key}")


def test_training_is_done_or_resumes_to_the_same_checkpoint(place):
    done = train(place)
    assert done.returncode == 0, done.stderr
    assert "resuming from outputs/older/checkpoints/step_000000006.pt, step 6 of 6" in done.stdout
    assert "decode.score is called decode.statistic now" in done.stderr
    newest = place / "outputs/older/checkpoints/step_000000006.pt"
    was = checkpoint.read(newest)
    newest.unlink()
    done = train(place)
    assert done.returncode == 0, done.stderr
    assert "step 4 of 6" in done.stdout
    now = checkpoint.read(newest)
    assert (now["step"], now["rng"]) == (was["step"], was["rng"])
    here = surroundings()
    stored = json.loads((place / "outputs/older/arithmetic.json").read_text())
    same = all(here[name] == stored[name] for name in ("torch", "processor"))
    before, after = dict(tensors(was)), dict(tensors(now))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, **({"rtol": 0, "atol": 0} if same else {}))


def test_predictions_labels_and_scores_count_as_already_there(place, capsys):
    files = {path: path.read_bytes() for path in RESULTS.glob("*.h5")}
    scores = json.loads((RESULTS / "scores.json").read_text())
    script("infer")
    told = capsys.readouterr()
    assert told.out.count("already there") == 2
    assert {path: path.read_bytes() for path in RESULTS.glob("*.h5")} == files
    assert [line for line in told.err.splitlines() if "decode.score" in line] in ([], [
        "decode.score is called decode.statistic now; the old name is taken until the next release"])
    for arguments in ([], ["decode.statistic=aff50_his256"], ["decode.score=aff50_his256"]):
        script("infer", *arguments)
        assert capsys.readouterr().out.count("already there") == 2
    script("evaluate")
    told = capsys.readouterr().out
    assert "other settings" not in told
    assert "decoded by kind affinities, threshold 0.6, statistic aff50_his256, dust_size 5" in told
    now = json.loads((RESULTS / "scores.json").read_text())
    assert now["test_im"]["scores"] == scores["test_im"]["scores"]
    from emcore.report import main
    assert main(["outputs/older"]) == 0


def test_its_merge_tree_is_cut_again_and_its_best_parameters_are_taken(place, capsys):
    script("infer", "--cut", "0.45")
    fresh = place / "fresh_prediction.h5"
    shutil.copy(RESULTS / "test_im_prediction.h5", fresh)
    script("infer", "--from", str(fresh), "decode.threshold=0.45")
    cut, whole = (open_volume(path, "labels")[...] for path in (RESULTS / "test_im_labels_0.45.h5",
                                                                place / "fresh_labels.h5"))
    assert (cut == whole).all()
    best = RESULTS / "best_params.toml"
    script("infer", "--params", str(best))
    made_by = record.read(RESULTS / "test_im_labels.h5", "labels")["decode"]
    assert made_by["statistic"] == tomllib.loads(best.read_text())["decode"]["score"] == "mean"
    assert set(made_by) == set(config.to_table(config.load(Settings, "run.toml").decode))
    capsys.readouterr()
    script("infer", "--params", str(best))
    assert capsys.readouterr().out.count("already there") == 2


def test_whole_tables_of_every_kind_are_translated_and_others_are_not(place):
    stored = config.read_toml("outputs/older/config.toml")
    settings = config.load(Settings, "outputs/older/config.toml")
    assert settings == config.from_table(Settings, stored)
    assert isinstance(settings.decode, AffinityDecode)
    assert isinstance(settings.model, RSUNetModel)
    assert [type(target).__name__ for target in settings.target] == ["AffinityTarget", "BoundaryTarget"]
    now = config.load(Settings, "run.toml")
    assert settings == now
    assert not results.decoded_otherwise({"decode": stored["decode"]}, config.to_table(now.decode))
    assert record.told_decode(stored["decode"]) == record.told_decode(config.to_table(now.decode))
    # masked pretraining took the sizes of its transformer from the table of any net
    masked = config.from_table(Settings, {**stored, "pretrain": {"mask_ratio": 0.5, "policy": {
        "kind": "patch", "least_ratio": 0.4, "ratios": [0.5]}}})
    assert isinstance(masked.model, MaskedAutoencoderModel)
    assert masked.model.transformer.depth == 6
    assert masked.pretrain.policy.least_ratio == 0.4
