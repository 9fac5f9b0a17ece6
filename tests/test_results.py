"""Results say what made them: infer.py and evaluate.py never take another result for the one that was asked for."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from emcore import config, record, results
from emcore.engine import checkpoint
from emcore.errors import InputError, run_command
from emcore.models.build import build_model
from emcore.report import main as report
from emcore.settings import Settings
from emcore.volumes import create_volume, open_volume

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
name = "tiny"
device = "cpu"
[data]
patch = [4, 16, 16]
[[data.test]]
image = "a.h5:raw"
label = "a.h5:labels"
[[target]]
kind = "affinity"
[model]
out_channels = 3
[model.rsunet]
width = [4, 8]
[train]
precision = "fp32"
[infer]
tile = [4, 0, 0]
layout = "contiguous"
compile = "off"
[decode]
kind = "affinities"
low = 0.01
high = 0.99
"""


def write_volume(path, seed, shape=(8, 24, 24)):
    random = np.random.default_rng(seed)
    labels = np.kron(random.integers(1, 50, tuple(n // 4 for n in shape)), np.ones((4, 4, 4), int)).astype(np.uint32)
    for name, values in (("raw", ((labels * 37) % 200).astype(np.uint8)), ("labels", labels)):
        with create_volume(f"{path}:{name}", shape, values.dtype, (30, 8, 8)) as out:
            out[...] = values


def write_checkpoint(path, seed=0, step=7, averaged=True):
    torch.manual_seed(seed)
    settings = config.load(Settings, path.parents[3] / "run.toml") if path.parent.name == "checkpoints" else (
        config.load(Settings, path.parent / "run.toml"))
    net = build_model(settings.model, settings.data.patch)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    plain = {name: value + 0.01 if value.is_floating_point() else value for name, value in weights.items()}
    checkpoint.save(path, {"step": step, "model": plain if averaged else weights,
                           "ema": {"updates": 1, "weights": weights} if averaged else None,
                           "config": config.to_table(settings)})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG)
    write_volume(tmp_path / "a.h5", 0)
    write_checkpoint(tmp_path / "outputs" / "tiny" / "checkpoints" / "step_000000007.pt")
    return tmp_path / "outputs" / "tiny" / "results_step=7"


def run(script, *arguments, code=0):
    """What a script printed, which must end with the code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        ended = run_command(runpy.run_path(str(ROOT / script))["main"], ["--cfg", "run.toml", *map(str, arguments)])
    assert ended == code, out.getvalue()
    return out.getvalue()


def values(path, dataset=None):
    return open_volume(path, dataset)[...]


def state(folder):
    """What identifies every file below a folder."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
            for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_again_does_nothing_and_settings_that_change_no_bit_do_not_matter(place):
    run("infer.py")
    before = state(place)
    assert {path.name for path in place.iterdir()} == {
        "test_im_prediction.h5", "test_im_prediction.blocks", "test_im_prediction.speed.json", "test_im_labels.h5"}
    for extra in ((), ("infer.tile=[5,0,0]", "infer.batch=3"), ("infer.slab=5",), ("data.workers=7", "train.steps=3"),
                  ("device=auto",)):
        assert run("infer.py", *extra).count("already there") == 2
    assert state(place) == before


def without_torch(*arguments):
    """What infer.py says in an interpreter that cannot import torch, and how it ends."""
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), None, '__main__')"
    command = [sys.executable, "-c", code, ROOT / "infer.py", "--cfg", "run.toml", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    return done.stdout + done.stderr, done.returncode


def test_what_is_there_is_known_without_torch_and_other_weights_under_its_name_are_not_taken_for_it(
        place, monkeypatch):
    first = run("infer.py")
    before = state(place)
    told, code = without_torch()
    assert code == 0, told
    assert told.count("already there") == 2
    assert told.splitlines()[0] in first  # the same weights, in the same words
    assert state(place) == before
    told, code = without_torch("decode.threshold=0.3")
    assert code == 0, told
    assert "test_im_labels.h5 is made again: decode.threshold" in told
    told, code = without_torch("infer.select=[2,1,0]")
    assert code == 2
    assert "was made with other settings: infer.select" in told
    settings = config.load(Settings, "run.toml")
    path = place.parent / "checkpoints" / "step_000000007.pt"
    assert results.known_weights(settings, str(path), None)[0].samefile(place)
    with monkeypatch.context() as patch:  # a file that may not be read, which root always may

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        patch.setattr(record, "digest_of_file", refuse)
        assert results.known_weights(settings, str(path), None) is None
    plain = config.load(Settings, "run.toml", ["infer.weights=plain"])
    assert results.known_weights(plain, "", None) is None
    path.rename(path.with_name("step_000000009.pt"))  # its own results would stand in another folder
    assert results.known_weights(settings, "", None) is None
    write_checkpoint(path.with_name("step_000000009.pt"), seed=1, step=7)
    assert results.known_weights(settings, "", place) is None
    write_checkpoint(path, seed=1)
    path.with_name("step_000000009.pt").unlink()
    assert re.search(r"the weights were .* are ", run("infer.py", code=2))


@pytest.mark.parametrize(("extra", "told"), [
    (("infer.views.flips=[1,2]",), r"infer.views.flips was \[\], is \[1, 2\]"),
    (("infer.select=[2,1,0]",), r"infer.select was \[\], is \[2, 1, 0\]"),
    (("infer.window=[4,24,24]",), r"infer.window was \[4, 16, 16\], is \[4, 24, 24\]"),
    (("data.normalise=score",), "data.normalise was 'range', is 'score'"),
    (("train.precision=bf16",), "train.precision was 'fp32', is 'bf16'"),
    (("infer.layout=channels_last",), "infer.layout was 'contiguous', is 'channels_last'"),
    (("infer.weights=plain",), "the weights were averaged weights .* are plain weights"),
    (("--checkpoint", "outputs/tiny/checkpoints/step_000000007.pt.other"), "the weights were .* are .*other"),
    (("data.test.0.image=b.h5:raw",), r"the volume was a.h5:raw .* is b.h5:raw"),
    (("data.test.0.box=[0,8,0,24,0,20]",), r"the volume was .* box \[0, 8, 0, 24, 0, 20\]"),
])
def test_a_prediction_of_other_weights_settings_or_volume_is_refused_and_replaced_or_kept_beside(place, extra, told):
    run("infer.py")
    write_volume("b.h5", 1)
    write_checkpoint(place.parent / "checkpoints" / "step_000000007.pt.other", seed=1)
    before, first = state(place), values(place / "test_im_prediction.h5")
    refused = run("infer.py", *extra, code=2)
    assert state(place) == before
    assert "was made with other settings: " in refused
    assert re.search(told, refused), refused
    run("infer.py", *extra, "--results", "elsewhere")
    assert state(place) == before
    run("infer.py", *extra, "--again")
    again = values(place / "test_im_prediction.h5")
    if "layout" not in extra[0]:  # which may give the same bits
        assert again.shape != first.shape or not np.array_equal(again, first)
    for name, dataset in (("prediction", None), ("labels", "labels"), ("labels", "fragments")):
        assert np.array_equal(values(place / f"test_im_{name}.h5", dataset),
                              values(Path("elsewhere") / f"test_im_{name}.h5", dataset))
    assert run("infer.py", *extra, "--again").count("already there") == 2


def test_other_settings_of_decode_decode_the_stored_prediction_again_and_say_why(place):
    run("infer.py")
    before = state(place)[place / "test_im_prediction.h5"]
    first = values(place / "test_im_labels.h5", "labels")
    told = run("infer.py", "decode.threshold=0.9")
    assert "test_im_labels.h5 is made again: decode.threshold was 0.5, is 0.9" in told
    assert state(place)[place / "test_im_prediction.h5"] == before
    assert not np.array_equal(values(place / "test_im_labels.h5", "labels"), first)
    assert open_volume(place / "test_im_labels.h5", "labels").attrs["record"]["decode"]["threshold"] == 0.9
    run("infer.py", "--cut", "0.5")
    assert np.array_equal(values(place / "test_im_labels_0.5.h5", "labels"), first)
    assert open_volume(place / "test_im_labels_0.5.h5", "labels").attrs["record"]["decode"]["threshold"] == 0.5


def test_another_cut_finds_its_results_by_the_name_of_the_checkpoint_and_reads_no_weights(place):
    settings, place = config.load(Settings, "run.toml"), place.relative_to(Path.cwd())
    run_folder = place.parent
    with pytest.raises(InputError, match=r"has no results: run infer\.py first"):
        results.of_checkpoint(settings, "")
    with pytest.raises(InputError, match=r"best\.json names no checkpoint that is there: name the folder"):
        results.of_checkpoint(settings, "best")
    place.mkdir()
    (run_folder / "best.json").write_text('{"monitor": "loss/val", "best": [[3, 0.1], [7, 0.2]]}')  # 3 is deleted
    named = {"": place, "best": place, str(run_folder / "checkpoints" / "step_000000007.pt"): place,
             "elsewhere/net.pt": Path("outputs/tiny_weights=net")}
    assert {choice: results.of_checkpoint(settings, choice) for choice in named} == named
    code = ("import runpy, sys; sys.modules['torch'] = None\nfrom emcore.errors import run_command\n"
            f"sys.exit(run_command(runpy.run_path({str(ROOT / 'infer.py')!r})['main'], sys.argv[1:]))")
    for more, told in (((), r"this command needs torch, which is not installed here: .+ -m pip install torch\n"),
                       (("--cut", "0.5"), f"there is no {named['']}/test_im_labels.h5: run infer.py without --cut")):
        done = subprocess.run([sys.executable, "-c", code, "--cfg", "run.toml", *more], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, bool(re.search(told, done.stderr))) == (2, True), done.stderr


def test_labels_of_a_prediction_that_was_replaced_are_made_again_or_refused(place):
    run("infer.py")
    run("infer.py", "infer.views.flips=[2]", "decode.kind=none", "--again")
    assert "was decoded from another prediction" in run("evaluate.py", "infer.views.flips=[2]", code=2)
    assert "they were made of another prediction" in run("infer.py", "infer.views.flips=[2]")
    run("evaluate.py", "infer.views.flips=[2]")


def test_data_that_was_copied_is_the_same_and_data_that_was_changed_is_not(place):
    run("infer.py")
    run("evaluate.py")
    os.utime("a.h5", (1, 1))
    assert run("infer.py").count("already there") == 2
    shutil.copy("a.h5", "copy.h5")
    copied = ("data.test.0.image=copy.h5:raw", "data.test.0.label=copy.h5:labels", "data.test.0.name=test_im")
    assert run("infer.py", *copied).count("already there") == 2
    run("evaluate.py", *copied)
    with h5py.File("copy.h5", "r+") as file:
        file["raw"][0, 0, 0] ^= 1
    assert "the volume was" in run("infer.py", *copied, code=2)
    assert "the results of test_im are of a.h5:raw" in run("evaluate.py", *copied, code=2)


def test_evaluate_refuses_another_volume_under_a_used_name_and_another_truth(place):
    run("infer.py")
    told = run("evaluate.py")
    assert "predicted by averaged weights" in told
    assert "step 7" in told
    write_volume("b.h5", 1)
    both = ("data.test.0.image=b.h5:raw", "data.test.0.label=b.h5:labels")
    assert "the results of test_im are of a.h5:raw" in run("evaluate.py", *both, code=2)
    assert "was made for the truth a.h5:labels" in run("evaluate.py", both[1], code=2)
    run("evaluate.py", both[1], "--again")
    assert json.loads((place / "scores.json").read_text())["test_im"]["made_by"]["truth"]["label"] == "b.h5:labels"


def test_evaluate_says_what_it_scores_where_that_is_not_what_the_settings_say(place):
    run("infer.py")
    told = run("evaluate.py", "decode.threshold=0.9", "infer.overlap=0.25")
    assert "the labels were made with other settings than those given here: decode.threshold was 0.5, is 0.9" in told
    assert "the prediction was made with other settings than those given here: infer.overlap was 0.5, is 0.25" in told
    told = run("evaluate.py", "decode.kind=none", 'evaluate.scores=["jaccard"]')
    assert "test_im_labels.h5 is not scored, because decode.kind is none" in told


def test_scores_of_a_second_volume_stand_beside_those_of_the_first(place):
    write_volume("b.h5", 1)
    for name in "ab":
        chosen = (f"data.test.0.image={name}.h5:raw", f"data.test.0.label={name}.h5:labels", f"data.test.0.name={name}")
        run("infer.py", *chosen)
        assert f"\n{name}\n" in run("evaluate.py", *chosen)
    assert set(json.loads((place / "scores.json").read_text())) == {"a", "b"}
    lines = (place / "scores.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"a", "b"}
    html = (place.parent / "report.html").read_text()
    assert "<td>a</td>" in html
    assert "predicted by averaged weights" in html


def test_weights_of_others_do_not_write_into_the_folder_of_a_run(place):
    run("infer.py")
    before = state(place.parent)
    write_checkpoint(Path("shared.pt").resolve(), seed=3)
    run("infer.py", "--checkpoint", "shared.pt")
    beside = Path("outputs/tiny_weights=shared")
    run("evaluate.py", "--results", beside)
    assert state(place.parent) == before
    assert {path.name for path in beside.iterdir()} == {
        "test_im_prediction.h5", "test_im_prediction.blocks", "test_im_prediction.speed.json", "test_im_labels.h5",
        "scores.json", "scores.csv", "scores.txt", "report.html"}
    write_checkpoint(Path("shared.pt").resolve(), seed=4)
    assert "the weights were" in run("infer.py", "--checkpoint", "shared.pt", code=2)
    shutil.rmtree(place.parent)
    assert "to be named by --results: outputs/tiny_weights=shared" in run("evaluate.py", code=2)


def test_two_volumes_of_one_name_are_refused(place):
    twice = 'data.test=[{image="a.h5:raw"},{image="a.h5:labels"}]'
    assert "two volumes of data.test are called a" in run("infer.py", twice, code=2)


def test_tiles_of_an_unfinished_prediction_are_continued_by_the_same_settings_alone(place, monkeypatch):
    from emcore.prediction import tiles

    def killed(*arguments):
        raise KeyboardInterrupt

    whole = Path("whole")
    run("infer.py", "--results", whole)
    with monkeypatch.context() as patched:
        patched.setattr(tiles, "join_blocks", killed)
        run("infer.py", code=130)
    unfinished = place / "test_im_prediction.blocks"
    first = state(unfinished)
    assert sum(path.suffix == ".h5" for path in first) == 2
    assert "was begun with other settings: infer.overlap" in run("infer.py", "infer.overlap=0.25", code=2)
    told = run("infer.py", "--status")
    assert "test_im_prediction.h5: begun, 2 of 2 parts are there" in told
    with monkeypatch.context() as patched:  # the tile is the one with which it was begun, so that nothing is done again
        patched.setattr(tiles, "join_blocks", killed)
        run("infer.py", "infer.tile=[5,9,0]", code=130)
    assert {path: stamp for path, stamp in state(unfinished).items() if path.suffix == ".h5"} == {
        path: stamp for path, stamp in first.items() if path.suffix == ".h5"}
    run("infer.py", "infer.tile=[5,9,0]")
    assert np.array_equal(values(place / "test_im_prediction.h5"), values(whole / "test_im_prediction.h5"))
    assert {path.suffix for path in state(unfinished)} == {".h5"}
    assert names(place) == names(whole)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("harm", ["removed", "cut off", "flipped"])
def test_a_damaged_tile_is_found_made_again_and_told_before_and_after_the_end(place, monkeypatch, harm):
    from emcore.prediction import tiles

    def damage(path):
        content = path.read_bytes()
        changed = content[:len(content) // 2] if harm == "cut off" else bytearray(content)
        if harm == "flipped":
            start = content.index(h5py.File(path)["labels"][0, 0].tobytes())
            changed[start + 5] ^= 8
        path.unlink() if harm == "removed" else path.write_bytes(bytes(changed))

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tiles, "join_blocks", killed)
        run("infer.py", code=130)
    tile = sorted((place / "test_im_prediction.blocks").glob("*/*/*.h5"))[1]
    content = tile.read_bytes()
    damage(tile)
    told = run("infer.py")
    assert (f"{tile.relative_to(Path.cwd())} is damaged; it is made again" in told) == (harm != "removed")
    assert tile.read_bytes() == content
    whole = values(place / "test_im_prediction.h5")
    before = state(place)
    damage(tile)
    with pytest.raises(InputError, match=r"is joined from"):
        values(place / "test_im_prediction.h5")
    told = f"test_im_prediction.h5: {tile.relative_to(place)} is missing or damaged; it is made again"
    assert told in run("infer.py")
    assert tile.read_bytes() == content
    assert np.array_equal(values(place / "test_im_prediction.h5"), whole)
    same = {path: stamp for path, stamp in state(place).items() if path.suffix == ".h5"
            and path.parent.parent == tile.parent.parent}
    assert {path for path, stamp in same.items() if before[path] != stamp} == {tile}
    assert run("infer.py").count("already there") == 2


def test_again_where_nothing_is_there_yet_just_predicts(place):
    run("infer.py", "--again")
    assert run("infer.py").count("already there") == 2


def test_a_command_that_comes_second_with_other_settings_does_not_join_the_first(place, monkeypatch):
    from emcore.prediction import begun

    begin = begun.begin

    def first_of_another(path, way, plan):
        table = json.loads(json.dumps(plan))
        table["weights"]["digest"], table["settings"]["infer"]["overlap"] = "0" * 64, 0.25
        begin(path, way, table)  # another command, between the check of this one and its work
        return begin(path, way, plan)

    monkeypatch.setattr(begun, "begin", first_of_another)
    told = run("infer.py", code=2)
    assert "was begun with other settings: the weights were" in told
    assert not list(place.rglob("*.h5"))


@pytest.mark.parametrize("tile", ["[3,0,0]", "none"])
def test_an_image_that_changes_while_it_is_predicted_is_noticed(place, monkeypatch, tile):
    from emcore.prediction.streaming import Job

    pieces = Job.pieces

    def change(job, box):
        write_volume("other.h5", 1)
        os.replace("other.h5", "a.h5")
        return pieces(job, box)

    monkeypatch.setattr(Job, "pieces", change)
    assert "a.h5:raw changed while it was predicted" in run("infer.py", f"infer.tile={tile}", code=2)
    assert not (place / "test_im_prediction.h5").exists()


def test_a_run_that_lives_is_not_replaced_by_one_with_other_settings(place, monkeypatch):
    from emcore.blocks.alive import Signs
    from emcore.prediction import tiles

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tiles, "join_blocks", killed)
        run("infer.py", code=130)
    other = ("infer.overlap=0.25", "decode.kind=none", "--again")
    with Signs(place / "test_im_prediction.blocks"):
        assert "prediction.h5 is being predicted with other settings by process" in run("infer.py", *other, code=2)
    run("infer.py", *other)
    assert len(list(place.glob("test_im_prediction.blocks/tiles-*"))) == 1


def test_files_of_older_versions_count_as_already_there_and_are_named_as_such(place):
    run("infer.py")
    with h5py.File(place / "test_im_prediction.h5", "r+") as file:
        del file["main"].attrs["record"]
    with h5py.File(place / "test_im_labels.h5", "r+") as file:
        del file["labels"].attrs["record"]
    before = state(place)
    told = run("infer.py")
    assert "test_im_prediction.h5: already there, without a record of what made it" in told
    assert "test_im_labels.h5: already there" in told
    assert state(place) == before
    assert run("evaluate.py").count("has no record of what made it") == 2
    assert "is made again: decode.threshold was 0.5, is 0.4" in run("infer.py", "decode.threshold=0.4")
    assert "has no record" not in run("infer.py", "--again")


def test_settings_that_are_newer_than_a_record_have_their_defaults(place):
    run("infer.py")
    for name, dataset in (("prediction", "main"), ("labels", "labels")):
        with h5py.File(place / f"test_im_{name}.h5", "r+") as file:
            table = json.loads(file[dataset].attrs["record"])
            for settings in (table.get("decode", {}), table.get("settings", {}).get("infer", {}),
                             table.get("settings", {}).get("model", {}).get("rsunet", {})):
                for key in ("ties", "blend", "up"):
                    settings.pop(key, None)
            file[dataset].attrs["record"] = json.dumps(table)
    with h5py.File(place / "test_im_labels.h5", "r+") as file:  # a digest of what the prediction's file says now
        table = json.loads(file["labels"].attrs["record"])
        table["prediction"]["digest"] = record.digest(record.read(place / "test_im_prediction.h5"))
        file["labels"].attrs["record"] = json.dumps(table)
    assert run("infer.py").count("already there") == 2
    assert "other settings than those given here" not in run("evaluate.py")
    assert "infer.blend was 'bump', is 'gaussian'" in run("infer.py", "infer.blend=gaussian", code=2)


def test_the_page_refuses_scores_of_other_labels(place, capsys):
    run("infer.py")
    run("evaluate.py")
    folder = place.parent
    (folder / "config.toml").write_text(config.to_toml(config.load(Settings, "run.toml")))
    assert report([str(folder)]) == 0
    run("infer.py", "decode.threshold=0.9")
    assert run_command(report, [str(folder)]) == 2
    assert ("the stored scores of test_im are not of the results that stand there now: decode.threshold was 0.5, is "
            "0.9") in capsys.readouterr().err


def test_inspect_prints_what_made_a_file(place, capsys):
    from emcore.volumes.inspect import main as inspect

    run("infer.py")
    capsys.readouterr()
    assert inspect([str(place / "test_im_labels.h5")]) == 0
    told = capsys.readouterr().out
    for text in ("what made it:", '"used": "averaged", "step": 7', 'prediction.volume: {"image": "a.h5:raw"',
                 '"threshold": 0.5', '"precision": "fp32"'):
        assert text in told, told


def test_weights_are_chosen_by_name_and_the_headline_says_which(place):
    assert "averaged weights" in run("infer.py")
    write_checkpoint(place.parent / "checkpoints" / "step_000000008.pt", step=8, averaged=False)
    assert "plain weights" in run("infer.py")
    assert "averaged" in run("infer.py", "infer.weights=averaged", code=2)


