"""infer.py in blocks as users run it: the labels of decoding at once, whoever is killed, stopped, damaged or beside it.
"""

import contextlib
import io
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from bench.affinities import make_affinities
from emcore import files
from emcore.blocks import choice, density
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.explain import main as explain
from emcore.blocks.run import PLAN, read_plan
from emcore.errors import InputError, run_command
from emcore.files import TEMPORARY
from emcore.volumes import create_volume, open_volume
from tests import scripts
from tests.block_toy import change_byte
from tests.disks import disk, ended_well, resize
from tests.test_block_engines import cluster
from tests.test_results import write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (24, 40, 40)
BLOCKS = ("blocks.size=[12,20,20]", "blocks.workers=1")
SECTIONS = ("blocks.size=[7,40,40]", "blocks.workers=1")
RESULTS = Path("outputs/tiny/results_step=7")
LABELS = RESULTS / "a_labels.h5"
CONFIG = """
name = "tiny"
device = "cpu"
[data]
patch = [4, 16, 16]
[[data.test]]
image = "a.h5:raw"
label = "a.h5:labels"
name = "a"
[[target]]
kind = "affinity"
[model]
out_channels = 3
[model.rsunet]
width = [4, 8]
[train]
precision = "fp32"
[infer]
layout = "contiguous"
compile = "off"
[decode]
kind = "affinities"
low = 0.1
high = 0.98
boundary = 0.2
dust_size = 60
dust_affinity = 0.2
remove_size = 30
[decode.link]
iou = 0.3
affinity = 0.1
one_sided_size = 10
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """This process waits for no disk, and is no rank and no job."""
    monkeypatch.setattr(files, "flush_to_disk", lambda path: None)
    for name in ("WORLD_SIZE", "RANK", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)


# ---- a volume and its prediction


def cells_of(shape, seed=0, size=6):
    """Labels of cells around random points, without background."""
    from scipy.spatial import cKDTree

    points = np.random.default_rng(seed).uniform(0, shape, (int(np.prod(shape)) // size**3, 3))
    return (cKDTree(points).query(np.indices(shape).reshape(3, -1).T)[1] + 1).reshape(shape).astype(np.uint32)


def affinities_of(labels, seed=0):
    """uint8 affinities (z, y, x): low between cells, high inside, with noise that joins some and splits others."""
    rng = np.random.default_rng(seed)
    cloud = np.kron(rng.normal(0, 30, [-(-length // 4) for length in labels.shape]), np.ones((4, 4, 4)))
    cloud = cloud[tuple(map(slice, labels.shape))]
    found = np.empty((3, *labels.shape), np.uint8)
    for axis in range(3):
        crossing = np.diff(labels, axis=axis, prepend=np.take(labels, [0], axis)) != 0
        found[axis] = np.clip(np.where(crossing, 50, 200) + cloud + rng.normal(0, 12, labels.shape), 0, 255)
    return found


def write(reference, values, **attributes):
    with create_volume(reference, values.shape, values.dtype, (30, 8, 8), (60, 0, 16), attributes) as out:
        out[...] = values


def write_prediction(path, labels, seed=0):
    write(f"{path}:prediction", affinities_of(labels, seed), offsets=(-np.eye(3, dtype=int)).tolist())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a config, a volume, a net, and in its results a prediction that the net has not made."""
    place = tmp_path_factory.mktemp("made")
    labels = cells_of(SHAPE)
    write(f"{place}/a.h5:raw", ((labels * 37) % 200).astype(np.uint8))
    write(f"{place}/a.h5:labels", labels)
    (place / RESULTS).mkdir(parents=True)
    write_prediction(place / RESULTS / "a_prediction.h5", labels)
    (place / "run.toml").write_text(CONFIG)
    write_checkpoint(place / "outputs" / "tiny" / "checkpoints" / "step_000000007.pt")
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    """Every file that decoding in blocks leaves, and what it holds; the labels are those of decoding at once."""
    place = tmp_path_factory.mktemp("undisturbed") / "place"
    shutil.copytree(made, place)
    with contextlib.chdir(place):
        decode()
        whole = open_volume(LABELS, "labels")[...]
        LABELS.unlink()
        decode(*BLOCKS)
        assert np.array_equal(open_volume(LABELS, "labels")[...], whole)
        assert whole.max() > 50
        return contents()


def contents():
    """What is in the files of labels: voxels and attributes of the joined file, and all bytes of its blocks."""
    found = {str(path.relative_to(RESULTS)): path.read_bytes() for path in blocks_folder().rglob("*") if path.is_file()}
    for path in RESULTS.glob("a_labels*.h5"):
        volume = open_volume(path, "labels")
        found[path.name] = (volume[...].tobytes(), str(volume.attrs), volume.resolution, volume.offset)
    return found


def blocks_folder():
    return LABELS.with_suffix(".blocks")


# ---- commands


def run(script, *arguments, code=0):
    """What a script said in this process, which must end with the code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        ended = run_command(runpy.run_path(str(ROOT / script))["main"], ["--cfg", "run.toml", *map(str, arguments)])
    assert ended == code, out.getvalue()
    assert "Traceback" not in out.getvalue(), out.getvalue()
    return out.getvalue()


def decode(*arguments, code=0):
    """What infer.py says that decodes the stored prediction."""
    return run("infer.py", "--from", RESULTS / "a_prediction.h5", *arguments, code=code)


def words_of(*arguments):
    return ["infer.py", "--cfg", "run.toml", "--from", str(RESULTS / "a_prediction.h5"), *arguments]


class Started:
    """infer.py in a process of its own, forked from one that has imported what it needs."""

    def __init__(self, *words, **environment):
        self.streams = [Path(f"{number}.{time.monotonic_ns()}.said").resolve() for number in (1, 2)]
        known = {**scripts.environment(), **environment}
        self.process = scripts.server().Process(target=scripts.run, args=(
            [str(ROOT / words[0]), *words[1:]], os.getcwd(), known, list(map(str, self.streams))))
        self.process.start()

    def kill(self, way=signal.SIGKILL):
        os.kill(self.process.pid, way)

    def alive(self):
        return self.process.is_alive()

    def ended(self, code=0):
        """What it said, once it has ended."""
        self.process.join(120)
        said = "".join(path.read_text() for path in self.streams if path.exists())
        assert self.process.exitcode == code, said
        assert "Traceback" not in said, said
        return said

    def workers(self):
        """The processes that it has begun, those that have ended apart."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit():
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == self.process.pid and fields[0] not in "ZX":
                        found.append(int(folder.name))
        return found


def count(folder=None):
    """How many files the stages have so far."""
    return sum(name.endswith((".columns", ".h5")) and not TEMPORARY.fullmatch(name)
               for _, _, names in os.walk(folder or blocks_folder()) for name in names)


def wait_for(files, process):
    """Returns when there are so many files, or the process has ended; whether it is alive."""
    while process.alive() and count() < files:
        time.sleep(0.002)
    return process.alive()


def printed(command, *arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert command(list(map(str, arguments))) == 0
    return out.getvalue()


# ---- whole and in blocks


def test_what_thresholds_cost_is_told_where_a_decoding_in_blocks_begins(place, monkeypatch):
    monkeypatch.setattr(density, "DENSE", 0)  # so that it always costs too much
    said = f"{RESULTS / 'a_prediction.h5'}: one fragment for every "
    assert said not in decode()
    LABELS.unlink()
    assert decode(*BLOCKS).count(said) == 1
    before = open_volume(LABELS, "labels")[...]
    assert said not in decode(*BLOCKS)  # its fragments are there
    LABELS.unlink()
    shutil.rmtree(blocks_folder())
    assert run("infer.py", *BLOCKS).count(said) == 1
    shutil.rmtree(blocks_folder())
    LABELS.unlink()
    monkeypatch.setattr(density, "DENSE", 1)
    assert "fragment for" not in decode(*BLOCKS)
    assert np.array_equal(open_volume(LABELS, "labels")[...], before)


def about(path):
    volume = open_volume(path, "labels")
    told = {name: value for name, value in volume.attrs.items() if name != "blocks"}
    return told, volume.resolution, volume.offset, volume.dtype


@pytest.mark.parametrize("extra, blocks, cuts", [
    pytest.param(("decode.end=0.8",), BLOCKS, (0.3, 0.7), id="watershed"),
    pytest.param(("decode.fragments=minima", "decode.threshold=0.25", "decode.end=0.3"), SECTIONS, (0.2, 0.3),
                 id="floods"),
])
def test_labels_cuts_and_explanations_are_those_of_decoding_at_once(place, extra, blocks, cuts):
    told = decode(*extra)
    assert re.search(r"38.4 kvoxel: decoding it whole takes about \S+ [kM]B, ", told)
    whole = Path("whole")
    whole.mkdir()
    for threshold in cuts:
        decode(*extra, "--cut", threshold)
    for path in RESULTS.glob("a_labels*"):
        path.rename(whole / path.name)
    told = decode(*extra, *blocks)
    assert re.search(r"38.4 kvoxel: \d+ blocks of \d+×\d+×\d+, .* a worker, 1 worker.*; \S+ kB of disk", told), told
    for threshold in cuts:
        decode("--cut", threshold)
    found = set()
    for name in ("a_labels.h5", *(f"a_labels_{threshold}.h5" for threshold in cuts)):
        ours, wanted = (open_volume(folder / name, "labels")[...] for folder in (RESULTS, whole))
        assert np.array_equal(ours, wanted)
        assert about(RESULTS / name) == about(whole / name)
        found.add(int(ours.max()))
    assert len(found) == 3
    assert min(found) >= 5
    for words in (("3", "5", "5"), ("12", "20", "20", "--other", "11", "19", "39"),
                  ("23", "39", "39", "--threshold", cuts[0]), ("0", "0", "0", "--other", "1", "0", "0", "--all")):
        assert printed(explain, LABELS, *words) == printed(explain, whole / LABELS.name, *words)


def test_scores_and_page_are_those_of_decoding_at_once(place):
    scores = {}
    for blocks in ((), BLOCKS):
        run("infer.py", "decode.end=1", *blocks)
        assert blocks_folder().exists() == bool(blocks)
        told = run("evaluate.py", 'evaluate.scores=["rand","voi","curve"]')
        assert "is not scored" not in told
        scores[blocks] = json.loads((RESULTS / "scores.json").read_text())
        page = (RESULTS.parent / "report.html").read_text()
        assert "<td>a</td>" in page
        assert len(page) > 20_000
        (RESULTS.parent / "report.html").unlink()
        LABELS.unlink()
    assert scores[BLOCKS] == scores[()]
    assert len(scores[()]["a"]["curve"]["threshold"]) > 5


@pytest.mark.parametrize("channels, settings, blocks", [
    pytest.param(3, ("kind=connected", "threshold=0.72", "remove_size=5"), BLOCKS, id="connected"),
    pytest.param(1, ("kind=components", "threshold=0.9", "remove_size=5"), BLOCKS, id="components"),
    pytest.param(1, ("kind=components", "threshold=0.5", "seed_threshold=0.8", "connectivity=4"), SECTIONS, id="seeds"),
    pytest.param(3, ("kind=polarity", "threshold=0.8", "small=4"), BLOCKS, id="polarity"),
    pytest.param(5, ("kind=mutex", "strides=[1,2,2]", "remove_size=5"), BLOCKS, id="mutex"),
])
def test_other_kinds_are_those_of_decoding_at_once(place, channels, settings, blocks):
    values = affinities_of(cells_of(SHAPE))[:channels]
    offsets = [*(-np.eye(3, dtype=int)).tolist(), [0, -6, 0], [0, 0, -6]][:channels]
    if channels == 5:  # two that hold apart
        values = np.concatenate([values, np.roll(values[1:], 3, (2, 3))])
    if "polarity" in settings[0]:  # every tenth cell is a pre, beside it lies a post
        pre = (cells_of(SHAPE) % 10 == 0) * np.uint8(240)
        values = np.stack([pre, np.roll(pre, 4, 2), np.maximum(pre, np.roll(pre, 4, 2))])
    Path("run.toml").write_text(CONFIG.partition("[decode]")[0])
    write(f"{RESULTS}/a_prediction.h5:prediction", values if channels > 1 else values[0],
          **({"offsets": offsets} if channels >= 3 else {}))
    settings = [f"decode.{setting}" for setting in settings]
    decode(*settings)
    whole, told = open_volume(LABELS, "labels")[...], about(LABELS)
    LABELS.unlink()
    decode(*settings, *blocks)
    assert blocks_folder().exists()
    assert np.array_equal(open_volume(LABELS, "labels")[...], whole)
    assert about(LABELS) == told
    assert whole.max() > 5
    assert "has no merges, so it cannot be cut" in decode("--cut", "0.3", code=2)


# ---- memory


def has_memory(monkeypatch, there, worker=1e5):
    """This process has so many bytes, and a worker takes as many before it has read anything."""
    monkeypatch.setattr(choice, "memory_there", lambda: there)
    monkeypatch.setattr(choice, "WORKER", worker)


def test_a_volume_that_does_not_fit_is_decoded_in_blocks_and_the_user_is_told(place, monkeypatch, undisturbed):
    has_memory(monkeypatch, 9e5)
    monkeypatch.setattr(choice, "SIDES", (20, 12))
    told = run("infer.py", "blocks.workers=1")
    assert re.search(r"a.h5:raw: 38.4 kvoxel: whole it would take \S+ [kM]B, 900.0 kB are there: 8 blocks of 20×20×20, "
                     r"\S+ kB a worker, 1 worker.*; \S+ kB of disk", told)
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]
    assert read_plan(blocks_folder())["block"] == [20, 20, 20]
    has_memory(monkeypatch, 5e5, worker=4e5)  # labels that are there need none
    assert f"{LABELS}: already there" in run("infer.py", "blocks.workers=1")


def test_where_neither_way_fits_one_sentence_comes_before_any_work(place, monkeypatch):
    has_memory(monkeypatch, 5e5, worker=4e5)
    (RESULTS / "a_prediction.h5").unlink()
    told = run("infer.py", code=2)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(r"38.4 kvoxel: whole it would take \S+ [kM]B, 500.0 kB are there: a worker needs at least \S+ "
                     "[kM]B for a block of 24×32×32, and 425.0 kB are there for each of 1: take a machine with",
                     errors[0])
    assert not RESULTS.exists() or not list(RESULTS.iterdir())


@pytest.mark.parametrize("settings, told", [
    (("kind=contour",), "decode.kind = contour works on the whole volume only"),
    (("kind=affinities", "ties=waterz"), "decode.ties = waterz works on the whole volume only"),
    (("kind=components", "seed_threshold=0.8"), "decode.seed_threshold with decode.connectivity = 26 works on"),
])
def test_what_needs_the_whole_volume_is_refused_only_where_blocks_are_needed(place, monkeypatch, settings, told):
    Path("run.toml").write_text(CONFIG.partition("[decode]")[0])
    settings = [f"decode.{setting}" for setting in settings]
    if "waterz" in settings[-1]:
        decode(*settings)
        assert not blocks_folder().exists()
        LABELS.unlink()
    monkeypatch.setattr(choice, "memory_there", lambda: 9e5)
    for command in (decode, lambda *words, code: run("infer.py", *words, code=code)):
        said = command(*settings, code=2)
        assert told in said
        assert "whole it would take" in said
        assert said.count("error: ") == 1
    monkeypatch.setattr(choice, "memory_there", lambda: 2**30)
    assert "decoding in blocks is asked for: " in decode(*settings, *BLOCKS, code=2)
    assert not LABELS.exists()
    assert not blocks_folder().exists()


# ---- what is there already


def stamps(folder=None):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder or RESULTS).rglob("*")
            if path.is_file()}


def test_settings_of_blocks_change_nothing_in_labels_that_are_there(place):
    run("infer.py", *BLOCKS)
    before = stamps()
    for other in ((), ("blocks.size=[5,40,13]",), ("blocks.workers=2",), ("blocks.engine=share",)):
        assert f"{LABELS}: already there" in run("infer.py", *other)
    assert stamps() == before


def test_another_setting_of_decode_takes_the_stages_that_it_does_not_concern(place):
    run("infer.py", "decode.threshold=0.7", *BLOCKS)
    before, first = stamps(blocks_folder()), open_volume(LABELS, "labels")[...]
    told = run("infer.py")
    assert f"{LABELS} is made again: decode.threshold was 0.7, is 0.5" in told
    assert "8 blocks of 12×20×20" in told
    second = stamps(blocks_folder())
    stages = {path.relative_to(blocks_folder()).parts[0].partition("-")[0]
              for path in before if second.get(path) == before[path]}
    assert stages == {"fragments", "seams", "graph", "merges"}
    assert not {path for path in second if path.name != PLAN and path in before and second[path] != before[path]}
    assert not np.array_equal(open_volume(LABELS, "labels")[...], first)
    told = run("infer.py", "decode.link=none")
    assert "is made again: decode.link" in told
    third = stamps(blocks_folder())
    kept = {path.relative_to(blocks_folder()).parts[0].partition("-")[0]
            for path in second if third.get(path) == second[path]}
    assert kept == {"fragments", "seams", "graph", "merges", "cut", "numbers", "sizes", "segments", "borders", "dust"}
    assert {folder.name.partition("-")[0] for folder in blocks_folder().iterdir() if "-" in folder.name} == {
        *kept, "labels"}, "stages that no labels stand on are left"


def test_merges_are_found_up_to_an_end_and_serve_no_cut_beyond_it(place, undisturbed):
    run("infer.py", *BLOCKS)
    before = stamps(blocks_folder())
    told = run("infer.py", "--cut", "0.6", code=2)
    assert "a_labels.h5 has merges up to the threshold 0.5 and cannot be cut at 0.6: set decode.end = 0.6 and" in told
    assert stamps(blocks_folder()) == before
    assert "the curve over the thresholds ends at 0.5, up to which merges were found (decode.end)" in run(
        "evaluate.py", 'evaluate.scores=["voi","curve"]')
    told = run("infer.py", "decode.end=0.6")
    assert "is made again: decode.end was 0.0, is 0.6" in told
    kept = {path.relative_to(blocks_folder()).parts[0].partition("-")[0]
            for path, stamp in stamps(blocks_folder()).items() if before.get(path) == stamp}
    assert kept == {"fragments", "seams", "graph"}
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]
    run("infer.py", "--cut", "0.6")
    in_blocks = open_volume(LABELS.with_name("a_labels_0.6.h5"), "labels")[...]
    run("infer.py", "decode.threshold=0.6")
    assert np.array_equal(open_volume(LABELS, "labels")[...], in_blocks)


def test_cuts_keep_their_blocks_when_the_labels_beside_them_are_made_again(place):
    decode(*BLOCKS)
    decode("--cut", "0.3")
    cut = LABELS.with_name("a_labels_0.3.h5")
    before = open_volume(cut, "labels")[...]
    decode("decode.threshold=0.7")
    assert np.array_equal(open_volume(cut, "labels")[...], before)


def test_a_name_with_brackets_keeps_its_blocks(place, undisturbed):
    (RESULTS / "a_prediction.h5").rename(RESULTS / "a[1]_prediction.h5")
    run("infer.py", "data.test.0.name=a[1]", *BLOCKS)
    assert open_volume(RESULTS / "a[1]_labels.h5", "labels")[...].tobytes() == undisturbed[LABELS.name][0]


def test_another_prediction_under_the_same_name(place):
    run("infer.py", *BLOCKS)
    first = open_volume(LABELS, "labels")[...]
    write_prediction(RESULTS / "a_prediction.h5", cells_of(SHAPE, seed=1), seed=1)
    assert "was decoded from another prediction" in decode("--cut", "0.3", code=2)
    assert f"{LABELS} is made again: they were made of another prediction" in run("infer.py", *BLOCKS)
    second = open_volume(LABELS, "labels")[...]
    assert not np.array_equal(first, second)
    LABELS.unlink()
    write_prediction(RESULTS / "a_prediction.h5", cells_of(SHAPE, seed=2), seed=2)
    told = run("infer.py", *BLOCKS, code=2)
    assert f"{blocks_folder()} was begun from another prediction than the one that is there now: remove that" in told
    shutil.rmtree(blocks_folder())
    run("infer.py", *BLOCKS)
    assert not np.array_equal(open_volume(LABELS, "labels")[...], second)


def test_a_run_that_lives_refuses_one_with_other_settings(place, undisturbed):
    first = Started(*words_of("blocks.size=[12,20,20]", "blocks.workers=2"))
    assert wait_for(1, first)
    first.kill(signal.SIGSTOP)
    try:
        told = decode(*BLOCKS, "decode.threshold=0.7", code=2)
        assert re.search(r"error: \S*a_labels.blocks is being made with other settings \(end was 0.5, is 0.7; "
                         rf"decode.threshold was 0.5, is 0.7\), by process {first.process.pid} of \S+, which showed "
                         r"itself \d+ s ago. Wait for its", told), told
        assert "with other settings" in decode("blocks.size=[12,40,40]", code=2)
    finally:
        first.kill(signal.SIGCONT)
    first.ended()
    assert contents() == undisturbed


# ---- killed, stopped, damaged


def check(undisturbed):
    """The same command again, in this process, ends with the files of an undisturbed run and no other."""
    told = decode(*BLOCKS)
    found = contents()
    assert found.keys() == undisturbed.keys()
    assert found == undisturbed
    return told


def test_a_command_that_is_killed_goes_on(place, undisturbed):
    kill_drivers(3, 0, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_command_that_is_killed_again_and_again_goes_on(place, undisturbed, seed):
    kill_drivers(20, seed, undisturbed)


def kill_drivers(kills, seed, undisturbed):
    """Each one at a random moment: a number of new files, and a little more."""
    moments, landed = random.Random(seed), 0
    whole = len([name for name in undisturbed if name.endswith((".columns", ".h5"))])
    for _ in range(kills):
        process = Started(*words_of("blocks.size=[12,20,20]", f"blocks.workers={moments.choice([1, 2, 3])}"))
        wait_for(count() + moments.randrange(1, max(2, 2 * whole // kills)), process)
        time.sleep(moments.uniform(0, 0.02))
        if process.alive():
            landed += 1
            process.kill()
        process.process.join()
    assert landed > 0
    check(undisturbed)


def test_workers_that_are_killed_or_stopped_change_nothing(place, undisturbed):
    kill_workers(2, 0, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6, 7, 8])
def test_workers_that_are_killed_or_stopped_many_times_change_nothing(place, undisturbed, seed):
    for turn in range(3):
        kill_workers(2, (seed, turn), undisturbed)
        shutil.rmtree(blocks_folder())
        LABELS.unlink()


def kill_workers(kills, seed, undisturbed):
    """One of the workers dies and another one stands still for a while, at random moments; a task may fail twice."""
    moments, landed = random.Random(str(seed)), 0
    process = Started(*words_of("blocks.size=[12,20,20]", "blocks.workers=3"))
    for _ in range(kills):
        if wait_for(count() + moments.randrange(1, 25), process) and (workers := process.workers()):
            stopped, killed = (moments.choice(workers) for _ in range(2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(killed, signal.SIGKILL)
                landed += 1
                os.kill(stopped, signal.SIGCONT)
    process.ended()
    assert landed > 0
    assert contents() == undisturbed


def damage(path, way):
    if way == "missing":
        path.unlink()
    elif way == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    elif way == "empty":
        path.write_bytes(b"")
    else:
        change_byte(path)


@pytest.mark.parametrize("way", ["missing", "cut off", "empty", "changed"])
def test_files_that_are_damaged_between_runs_are_made_again(place, undisturbed, way):
    decode(*BLOCKS)
    chosen = random.Random(way)
    stages = {path.parent for path in blocks_folder().rglob("*.columns")}
    damaged = [chosen.choice(sorted(stage.glob("*.columns"))) for stage in sorted(stages)]
    for path in damaged:
        damage(path, way)
    told = check(undisturbed)
    if way != "missing":
        assert len(re.findall(r"note: \S+\.columns .* made again", told)) >= len(damaged)
    assert len(damaged) >= 14


@pytest.mark.parametrize("way", ["missing", "cut off", "changed"])
def test_a_block_of_labels_that_is_damaged_is_never_read_as_zeros_and_is_made_again(place, undisturbed, way):
    run("infer.py", *BLOCKS)
    assert f"{LABELS}: already there" in run("infer.py", *BLOCKS)
    block = sorted(next(blocks_folder().glob("labels-*")).glob("*.h5"))[5]
    damage(block, way)
    with pytest.raises(InputError) as sentence:
        open_volume(LABELS, "labels")[...]
    assert block.name in str(sentence.value)
    told = run("evaluate.py", code=2)
    assert told.count("error: ") == 1
    assert block.name in told
    told = run("infer.py")
    assert f"{LABELS} is made again: {block} is missing or damaged" in told
    found = contents()
    assert {name: found[name] for name in found if name != LABELS.name} == {
        name: undisturbed[name] for name in undisturbed if name != LABELS.name}
    assert found[LABELS.name][0] == undisturbed[LABELS.name][0]
    assert f"{LABELS}: already there" in run("infer.py")


def test_a_block_of_labels_is_made_again_by_every_engine(place, undisturbed):
    run("infer.py", *BLOCKS)
    for engine in (("blocks.workers=2",), ("blocks.engine=share",)):
        for number, way in enumerate(("missing", "cut off", "changed")):
            damage(sorted(next(blocks_folder().glob("labels-*")).glob("*.h5"))[number], way)
        told = run("infer.py", *engine)
        assert re.search(r"is made again: \S+000000.h5 is missing or damaged, with 2 more", told)
        assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]
        assert contents().keys() == undisturbed.keys()


def test_labels_whose_joined_file_or_folder_is_gone_or_damaged_come_back(place, undisturbed):
    run("infer.py", *BLOCKS)
    LABELS.unlink()
    run("infer.py", *BLOCKS)
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]
    (blocks_folder() / PLAN).write_text("{")
    LABELS.unlink()
    run("infer.py", *BLOCKS)
    with h5py.File(LABELS, "r+") as file:
        file["labels"].attrs["blocks"] = "{}"
    told = run("infer.py", *BLOCKS)
    assert f"{LABELS} is made again: " in told
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]
    shutil.rmtree(blocks_folder())
    told = run("infer.py", *BLOCKS)
    assert re.search(r"is made again: \S+000000.h5 is missing or damaged, with 7 more", told)
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_files_that_are_damaged_during_a_run_are_made_again(place, undisturbed, seed):
    moments = random.Random(seed)
    process = Started(*words_of("blocks.size=[12,20,20]", "blocks.workers=2"))
    damaged = 0
    while process.alive():
        found = sorted(path for path in blocks_folder().rglob("*.columns") if not TEMPORARY.fullmatch(path.name))
        if found and damaged < 12:
            with contextlib.suppress(FileNotFoundError, IndexError):  # it is gone, or empty
                damage(moments.choice(found), moments.choice(["missing", "cut off", "empty", "changed"]))
                damaged += 1
        time.sleep(moments.uniform(0, 0.08))
    process.ended()
    assert damaged
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]
    check(undisturbed)


def test_a_prediction_that_changes_while_it_is_decoded_is_noticed(place, undisturbed, monkeypatch):
    make_numbers = AffinityWork.make_numbers

    def change(*arguments):
        (RESULTS / "a_prediction.h5").rename("kept.h5")
        write_prediction(RESULTS / "a_prediction.h5", cells_of(SHAPE, seed=1), seed=1)
        return make_numbers(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(AffinityWork, "make_numbers", change)
        told = decode(*BLOCKS, code=2)
    assert re.search(r"error: \S+a_prediction.h5 changed while it was decoded: run the same command again", told)
    assert not LABELS.exists()
    os.replace("kept.h5", RESULTS / "a_prediction.h5")
    check(undisturbed)


def test_a_cut_needs_no_prediction_but_takes_no_other_one(place):
    (RESULTS / "a_prediction.h5").rename("kept.h5")
    shutil.copy("kept.h5", RESULTS / "a_prediction.h5")
    decode(*BLOCKS, "decode.boundary=0", "decode.link=none")
    decode("--cut", "0.3")
    cut = LABELS.with_name("a_labels_0.3.h5")
    first = open_volume(cut, "labels")[...]
    cut.unlink()
    (RESULTS / "a_prediction.h5").unlink()
    decode("--cut", "0.3")
    assert np.array_equal(open_volume(cut, "labels")[...], first)
    path = sorted(next(blocks_folder().glob("fragments-*")).glob("*.columns"))[0]
    path.unlink()
    assert re.search("error: .*a_prediction.h5", decode("--cut", "0.35", code=2))
    write_prediction(RESULTS / "a_prediction.h5", cells_of(SHAPE, seed=1), seed=1)
    assert "was decoded from another prediction" in decode("--cut", "0.35", code=2)
    assert not path.exists()
    os.replace("kept.h5", RESULTS / "a_prediction.h5")  # another time of change, the same voxels
    decode("--cut", "0.35")
    assert path.exists()


def test_status_tells_how_far_a_killed_run_is(place):
    assert run("infer.py", "--status").splitlines()[1] == f"{LABELS}: not begun"
    process = Started(*words_of(*BLOCKS))
    assert wait_for(9, process)
    process.kill()
    process.process.join()
    told = run("infer.py", "--status")
    assert f"{RESULTS / 'a_prediction.h5'}: there" in told
    assert f"{LABELS}: fragments: 8 of 8 blocks, the last " in told
    assert f"{LABELS}: labels: 0 of 8 blocks" in told
    assert "is at work" not in told
    decode(*BLOCKS)
    told = run("infer.py", "--status")
    assert f"{LABELS}: there" in told
    assert "every stage is done" in told


# ---- several at once


def test_two_commands_at_once_end_with_the_same_bytes(place, undisturbed):
    both = [Started(*words_of("blocks.size=[12,20,20]", "blocks.workers=1")) for _ in range(2)]
    for process in both:
        process.ended()
    check(undisturbed)


def test_jobs_of_an_array_go_on_without_one_that_is_killed(place, undisturbed):
    jobs = [Started(*words_of("blocks.size=[12,20,20]"), SLURM_ARRAY_TASK_ID=str(4 + number), SLURM_ARRAY_TASK_MIN="4",
                    SLURM_ARRAY_TASK_COUNT="3") for number in range(3)]
    wait_for(3, jobs[1])
    jobs[1].kill()
    for number in (0, 2):
        jobs[number].ended()
    check(undisturbed)


@pytest.mark.slow
def test_ranks_of_torchrun_predict_and_decode_together(place):
    (RESULTS / "a_prediction.h5").unlink()
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "infer.py"), "--cfg",
             "run.toml", "infer.tile=[6,0,0]", "blocks.size=[12,20,20]", "decode.threshold=0.9"]
    done = subprocess.run([sys.executable, *words], env=scripts.environment(), capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    in_blocks, told = open_volume(LABELS, "labels")[...], about(LABELS)
    assert blocks_folder().exists()
    LABELS.unlink()
    shutil.rmtree(blocks_folder())
    run("infer.py", "decode.threshold=0.9")
    assert not blocks_folder().exists()
    assert np.array_equal(open_volume(LABELS, "labels")[...], in_blocks)
    assert about(LABELS) == told
    assert told[0]["record"]["truth"]["label"] == "a.h5:labels"


# ---- Dask


@pytest.mark.long
def test_workers_of_dask_on_this_machine_one_of_which_is_killed(place, undisturbed):
    pytest.importorskip("distributed")
    process = Started(*words_of("blocks.size=[12,20,20]", "blocks.workers=2", "blocks.engine=dask"))
    wait_for(5, process)
    spawned = [pid for pid in process.workers() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(spawned[0], signal.SIGKILL)
    process.ended()
    check(undisturbed)


@pytest.mark.long
def test_workers_of_a_scheduler_that_is_there_and_stands_elsewhere(place, undisturbed, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with contextlib.chdir(elsewhere):
        there = contextlib.ExitStack()
        address, processes = there.enter_context(cluster(elsewhere))
    with there:
        process = Started(*words_of("blocks.size=[12,20,20]", f"blocks.address={address}"))
        wait_for(5, process)
        processes[1].kill()
        process.ended()
    check(undisturbed)
    assert not [path for path in elsewhere.rglob("*") if path.suffix in (".columns", ".h5")]


# ---- larger volumes


def realistic(labels, clouds=1):
    """uint8 affinities with membranes between the labels, most of them near 1 inside."""
    for axis in range(3):
        labels[np.diff(labels, axis=axis, prepend=np.take(labels, [0], axis)) != 0] = 0
    return np.round(make_affinities(labels) * clouds * 255).astype(np.uint8)


@pytest.mark.long
def test_a_limit_of_address_space_brings_blocks_by_itself(tmp_path, monkeypatch):
    """`ulimit -v`, as some queues set it: what decoding at once takes is not there, and a worker's share is."""
    monkeypatch.chdir(tmp_path)
    affinities = realistic(np.kron(cells_of((60, 60, 60), size=8), np.ones((4, 4, 4), np.uint32)))
    RESULTS.mkdir(parents=True)
    write(f"{RESULTS}/a_prediction.h5:prediction", affinities, offsets=(-np.eye(3, dtype=int)).tolist())
    Path("run.toml").write_text(CONFIG.replace("high = 0.98", "high = 0.999"))
    decode()
    whole = open_volume(LABELS, "labels")[...]
    LABELS.unlink()
    limit, told = 400_000_000, ""
    while "whole it would take" not in told:  # more and more, until a worker fits
        limit += 50_000_000
        assert limit < 1_500_000_000
        code = (f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
                "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
        words = words_of("blocks.workers=1")
        done = subprocess.run([sys.executable, "-c", code, str(ROOT / words[0]), *words[1:]], capture_output=True,
                              text=True, env=scripts.environment() | {"OPENBLAS_NUM_THREADS": "1"}, timeout=500)
        told = done.stdout if done.returncode == 0 else ""
    assert re.search(r"13.8 Mvoxel: whole it would take \d+.\d MB, \d+.\d MB are there: \d+ blocks of ", told), told
    assert np.array_equal(open_volume(LABELS, "labels")[...], whole)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The prediction of a volume in which segments of every size are, and a folder for it."""
    place = tmp_path_factory.mktemp("large")
    (place / RESULTS).mkdir(parents=True)
    clouds = np.kron(np.random.default_rng(0).uniform(0.3, 1, (16, 28, 28)), np.ones((4, 4, 4), np.float32))
    affinities = realistic(cells_of((64, 112, 112), size=14), clouds)
    write(f"{place}/{RESULTS}/a_prediction.h5:prediction", affinities, offsets=(-np.eye(3, dtype=int)).tolist())
    return place


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["snemi_neurons", "snemi_neurons_sdt", "snemi_neurons_multitask"])
def test_recipes_are_those_of_decoding_at_once_in_every_grid(large, tmp_path, monkeypatch, recipe):
    """With their dust and their links, and at another threshold."""
    shutil.copytree(large, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(f'base = "{ROOT}/configs/snemi/{recipe}.toml"\n')
    decode()
    decode("--cut", "0.2")
    cut = LABELS.with_name("a_labels_0.2.h5")
    whole = [(open_volume(path, "labels")[...], about(path)) for path in (LABELS, cut)]
    assert 200 < whole[0][0].max() < whole[1][0].max()
    for size in ("32,56,56", "27,80,40", "100,200,35"):
        for path in (LABELS, cut):
            path.unlink()
        decode(f"blocks.size=[{size}]", "blocks.workers=2")
        decode("--cut", "0.2")
        for path, (labels, told) in zip((LABELS, cut), whole):
            assert np.array_equal(open_volume(path, "labels")[...], labels), size
            assert about(path) == told


# ---- a full disk


def test_a_file_that_may_not_grow_is_one_sentence_and_the_same_command_goes_on(place, undisturbed):
    for limit, extra in ((9_000, "blocks.workers=1"), (60_000, "blocks.workers=2")):
        code = (f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
                "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
        words = words_of("blocks.size=[12,20,20]", extra)
        done = subprocess.run([sys.executable, "-c", code, str(ROOT / words[0]), *words[1:]], capture_output=True,
                              text=True, env=scripts.environment(), timeout=100)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert re.search(r"cannot write \S+: it would grow beyond the file size limit .*; raise the limit and run the "
                         "same command again", errors[0])
    check(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("engine", [("blocks.workers=2",), ("blocks.engine=share",)])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(place, undisturbed, engine):
    with disk(2**26) as folder:
        shutil.copytree(place, folder / "place")
        with contextlib.chdir(folder / "place"):
            taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            full = 0
            for room in (100_000, 500_000, 1_000_000):
                resize(folder, taken + room)
                words = words_of("blocks.size=[12,20,20]", *engine)
                done = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], capture_output=True,
                                      text=True, env=scripts.environment(), timeout=100)
                full += not ended_well(done, Path())
            assert full >= 2
            resize(folder, 2**26)
            check(undisturbed)
