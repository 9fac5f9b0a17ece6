"""Engines carry out the same toy work: the same bytes whoever is killed, stopped, damaged or at work beside."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emcore import config
from emcore.blocks import engines, on_dask, share
from emcore.blocks.alive import Signs, signs
from emcore.blocks.attempts import share_of
from emcore.blocks.engines import engine_of
from emcore.blocks.status import status
from emcore.blocks.work import Stage, run_inline, run_task
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.blocks import Blocks, bytes_of
from tests.block_toy import LEAVES, ROOT, Sums, change_byte, started

ALONE = Blocks(engine="local", workers=1)
HERE = [pytest.param(ALONE, id="alone"), pytest.param(Blocks(engine="local", workers=3), id="local"),
        pytest.param(Blocks(engine="share"), id="share"),
        pytest.param(Blocks(engine="dask", workers=2), id="dask", marks=pytest.mark.long)]


@pytest.fixture
def work(tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return Sums(tmp_path / "work")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    work = Sums(tmp_path_factory.mktemp("wanted"))
    run_inline(work)
    return work.files()


def skip_without(settings: Blocks) -> None:
    if settings.engine == "dask":
        pytest.importorskip("distributed")


def until(happens: Callable[[], object], seconds: float = 60.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=100)
    return process.returncode, errors


# ---- all alike


@pytest.mark.parametrize("settings", HERE)
def test_every_engine_gives_the_same_bytes_and_a_second_run_finds_them(settings, work, wanted, capsys):
    skip_without(settings)
    work.ask("sums 2", 1, "damage")
    engines.run(work, settings)
    assert work.files() == wanted
    told = capsys.readouterr().err
    assert told.count("it is made again") == 2
    assert f"note: {work.folder / 'sums' / '1' / '000002.columns'} is damaged; it is made again" in told
    assert f"shares: 100% {LEAVES} of {LEAVES} blocks" in told
    last = work.folder / "shares" / "000007.columns"
    change_byte(last)
    before = {path: path.stat().st_mtime_ns for path in work.folder.rglob("*.columns")}
    engines.run(work, ALONE if settings.engine == "dask" else settings)
    after = {path: path.stat().st_mtime_ns for path in work.folder.rglob("*.columns")}
    assert work.files() == wanted
    assert [path for path, written in after.items() if written != before[path]] == [last]


@pytest.mark.parametrize("settings", HERE)
def test_a_block_that_always_fails_is_named_with_what_was_said_last(settings, work, capsys):
    skip_without(settings)
    work.ask("sums 0", 3, "fail")
    with pytest.raises(InputError, match=r"sums 0, leaf 3 failed 3 times, at last by: RuntimeError: this block is "
                                         r"cursed. What is done stays"):
        engines.run(work, settings)
    told = capsys.readouterr().err
    assert told.count("note: sums 0, leaf 3 failed and runs again: RuntimeError") == 2
    assert told.count("Traceback") == 1
    work.ask("sums 0", 3, "fail_once")
    engines.run(work, ALONE if settings.engine == "dask" else settings)
    assert "1 failed" in capsys.readouterr().err


@pytest.mark.parametrize("settings", HERE)
def test_a_mistake_of_the_user_is_one_sentence_and_no_second_try(settings, work):
    skip_without(settings)
    work.ask("sums 1", 2, "refuse")
    code, told = ended(started(work, engine=settings.engine, workers=settings.workers))
    assert code == 2
    assert "error: the prediction cannot be read\n" in told
    assert "Traceback" not in told
    assert "again" not in told


@pytest.mark.parametrize("settings", HERE)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(settings, work, wanted):
    skip_without(settings)
    work.ask("sums 1", 2, "fill_disk")
    code, told = ended(started(work, engine=settings.engine, workers=settings.workers))
    assert code == 2
    assert told.splitlines()[-1] == (
        f"error: cannot write {work.folder / 'sums' / '1' / '000002.columns'}: it would grow beyond the file size "
        "limit (ulimit -f, or the file system's); raise the limit and run the same command again")
    assert "Traceback" not in told
    left = work.files()
    assert left.items() <= wanted.items()
    (work.folder / "asked" / "sums 1-2").unlink()
    run_inline(work)
    assert work.files() == wanted


def test_a_file_that_is_damaged_again_and_again_ends_the_run(work, monkeypatch):
    run_inline(work)
    top, = [stage for stage in work.stages() if stage.name == "sums 4"]
    wrong = work.path(work.stages()[3], 0)
    monkeypatch.setattr(Sums, "misbehave", lambda self, stage, number: stage == top and change_byte(wrong))
    with pytest.raises(InputError, match=r"000000.columns is damaged.* though it was made 3 times: the disk"):
        run_task(work, top, 0)


# ---- processes of this machine


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_for_a_while_changes_nothing(work, wanted, way):
    work.ask("sums 0", 5, "wait_once" if way == signal.SIGKILL else "wait_a_little")
    driver = started(work, engine="local", workers=2)
    process, = until(work.told)
    os.kill(process, way)
    if way == signal.SIGSTOP:
        time.sleep(1)
        os.kill(process, signal.SIGCONT)
    code, told = ended(driver)
    assert code == 0, told
    assert ("leaf 5 failed and runs again: its process was ended by SIGKILL" in told) == (way == signal.SIGKILL)
    assert work.files() == wanted


def test_a_block_that_kills_its_process_is_named_with_the_last_line(work, capsys):
    work.ask("sums 0", 3, "die")
    with pytest.raises(InputError, match=r"leaf 3 failed 3 times, at last by: its process was ended by SIGKILL, after "
                                         r"'about to die'. .* a smaller blocks.size need less"):
        engines.run(work, Blocks(engine="local", workers=2))


@pytest.mark.parametrize("way, code", [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
                                       pytest.param(signal.SIGTERM, -15, marks=pytest.mark.long),
                                       pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)])
def test_the_processes_end_with_the_one_that_began_them(work, wanted, way, code):
    work.ask("sums 0", 0, "wait_once")
    work.ask("sums 0", 1, "wait_once")
    driver = started(work, engine="local", workers=2)
    until(lambda: len(work.told()) == 2)
    driver.send_signal(way)
    assert ended(driver)[0] == code
    until(lambda: not any(os.path.exists(f"/proc/{process}") for process in work.told()))
    engines.run(work, Blocks(engine="local", workers=1))
    assert work.files() == wanted


@pytest.mark.slow
def test_two_commands_at_once_on_one_folder_are_harmless(work, wanted):
    drivers = [started(work, engine="local", workers=2, seconds=0.02) for _ in range(2)]
    assert [ended(driver)[0] for driver in drivers] == [0, 0]
    assert work.files() == wanted


def test_a_process_keeps_to_its_share_of_the_cores(work):
    code = ("from emcore.threads import allotted_cores, take_share; every = allotted_cores(); take_share(1, 2)\n"
            "half = allotted_cores(); take_share(5, 100); one = allotted_cores(); take_share(0, 1)\n"
            "assert (half, one, allotted_cores()) == (max(1, every // 2), 1, every), (half, one)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    few, many = Stage("few", 2, ""), Stage("many", 100, "")
    assert [share_of(many, number, worker, 4) for number, worker in ((0, 0), (50, 3))] == [(0, 4), (3, 4)]
    assert [share_of(few, number, worker, 4) for number, worker in ((0, 2), (1, 3))] == [(0, 2), (1, 2)]


# ---- processes that share files alone


@pytest.mark.slow
def test_jobs_of_an_array_finish_without_one_that_is_killed(work, wanted):
    work.ask("sums 0", 1, "wait_once")
    jobs = [started(work, {"SLURM_ARRAY_TASK_ID": str(7 + 2 * job), "SLURM_ARRAY_TASK_MIN": "7",
                           "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, seconds=0.05)
            for job in range(3)]
    process, = until(work.told)
    assert process == jobs[1].pid
    time.sleep(0.5)
    os.kill(process, signal.SIGKILL)
    assert [ended(job)[0] for job in jobs] == [0, -9, 0]
    assert work.files() == wanted
    assert [words["process"] for _, words, _ in signs(work.folder)] == [process]


@pytest.mark.slow
def test_a_rank_that_gives_no_sign_is_not_waited_for_and_may_come_back(work, wanted):
    work.ask("sums 0", 0, "wait_a_little")
    ranks = [started(work, {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}, silence=1.0)
             for rank in range(2)]
    process, = until(work.told)
    os.kill(process, signal.SIGSTOP)
    assert ended(ranks[1])[0] == 0
    assert work.files() == wanted
    os.kill(process, signal.SIGCONT)
    assert ended(ranks[0])[0] == 0
    assert work.files() == wanted


def test_what_another_process_is_at_is_left_to_it(work):
    with Signs(work.folder, 0.1, 5.0) as other, Signs(work.folder, 0.1, 5.0) as mine:
        other.say("sums 0", 3)
        assert mine.others("sums 0") == {3}
        assert mine.others("sums 1") == set()
        mine.say("sums 0", None)
        assert other.others("sums 0") == set()
        other.path.write_text('{"host": "x", "machine": "../../..", "process": "../x", "born": 0, "stage": "sums 0", '
                              '"number": 3}')
        assert mine.others("sums 0") == set()
    assert list((work.folder / "alive").iterdir()) == []


def test_a_sign_that_is_not_finished_leaves_nothing_behind_on_a_full_disk_or_after_a_kill(tmp_path, monkeypatch):
    def full(path, text):
        path.touch()
        raise OSError(28, "No space left on device")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with Signs(tmp_path):
            assert list((tmp_path / "alive").iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr("emcore.blocks.alive.os.replace", killed)
        patched.setattr("emcore.files.born", lambda process: 1)  # another one has its number now
        with pytest.raises(KeyboardInterrupt):
            Signs(tmp_path).say("", None)
    assert len(list((tmp_path / "alive").iterdir())) == 1
    with Signs(tmp_path) as signs:
        assert list((tmp_path / "alive").iterdir()) == [signs.path]


@pytest.mark.parametrize("known, wanted", [
    ({}, (0, 1)), ({"WORLD_SIZE": "4", "RANK": "2"}, (2, 4)),
    ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "6"}, (5, 6)),
    ({"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}, (2, 3))])
def test_a_process_knows_its_place(known, wanted, work, monkeypatch):
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert share.place() == wanted
    assert engine_of(Blocks()) == ("share" if known else "local")
    assert engine_of(Blocks(slurm={})) == engine_of(Blocks(address="tcp://x:1")) == "dask"
    assert engine_of(Blocks(engine="local")) == "local"


def test_a_place_that_is_no_number_is_refused(work, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "one")
    with pytest.raises(InputError, match="SLURM_ARRAY_TASK_ID"):
        share.place()


# ---- Dask


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A scheduler and workers that have no nanny."""
    pytest.importorskip("distributed")
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "critical"}
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
             "--scheduler-file", str(folder / "scheduler.json"), "--no-dashboard"]
    started = [subprocess.Popen(words, env=known, stderr=subprocess.DEVNULL)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(folder / "scheduler.json"),
              "--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder / "space"),
              "--death-timeout", "20"]
    started += [subprocess.Popen(worker, env=known, stderr=subprocess.DEVNULL) for _ in range(workers)]
    try:
        from distributed import Client

        with Client(scheduler_file=str(folder / "scheduler.json"), timeout=30) as client:
            client.wait_for_workers(workers, timeout=30)
            address = client.scheduler.address
        yield address, started
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_worker_of_dask_that_is_killed_is_replaced(work, wanted):
    pytest.importorskip("distributed")
    work.ask("sums 0", 5, "wait_once")
    driver = started(work, engine="dask", workers=2)
    process, = until(work.told)
    os.kill(process, signal.SIGKILL)
    code, told = ended(driver)
    assert code == 0, told
    assert work.files() == wanted


@pytest.mark.long
def test_a_block_that_kills_workers_of_dask_is_named(work):
    pytest.importorskip("distributed")
    work.ask("sums 0", 3, "die")
    with pytest.raises(InputError, match="leaf 3 failed 3 times, at last by: the death of its worker"):
        engines.run(work, Blocks(engine="dask", workers=2))


@pytest.mark.long
def test_a_cluster_that_is_there_goes_on_without_one_of_its_workers_but_not_without_its_scheduler(work, wanted,
                                                                                                  tmp_path):
    with cluster(tmp_path) as (address, processes):
        work.ask("sums 0", 5, "wait_once")
        driver = started(work, address=address)
        process, = until(work.told)
        os.kill(process, signal.SIGKILL)
        code, told = ended(driver)
        assert code == 0, told
        assert work.files() == wanted
        again = Sums(tmp_path / "again")
        again.ask("sums 0", 5, "wait_once")
        driver = started(again, address=address)
        until(again.told)
        processes[0].kill()
        code, told = ended(driver)
        assert code == 2, told
        assert "error: the scheduler of Dask is lost" in told
        assert "Traceback" not in told


def test_an_address_where_nobody_is_gets_a_sentence(work, monkeypatch):
    dask = pytest.importorskip("dask")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), \
            pytest.raises(InputError, match=r"no scheduler of Dask answers at tcp://127.0.0.1:1"):
        engines.run(work, Blocks(address="tcp://127.0.0.1:1"))


def test_without_dask_a_sentence_names_the_extra(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"needs the extra dask, .*-m pip install 'dask"):
        engines.run(work, Blocks(engine="dask"))


SBATCH = """#!/bin/bash
script=$(mktemp "$JOBS/script.XXXXXX")
cp "$1" "$script"
setsid bash "$script" >> "$JOBS/log" 2>&1 &
echo $! | tee -a "$JOBS/jobs"
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Commands that play SLURM: a job is a process of this machine."""
    pytest.importorskip("dask_jobqueue")
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/bash\nkill -- -"$1"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
def test_jobs_of_slurm_are_handed_in_and_taken_back(work, wanted, queue):
    table = {"jobs": 2, "cores": 1, "memory": "1GB", "queue": "short", "walltime": "00:10:00", "interface": "lo",
             "job_script_prologue": ["export HELLO=there"]}
    engines.run(work, Blocks(slurm=table))
    assert work.files() == wanted
    script = next(queue.glob("script.*")).read_text()
    for line in ("#SBATCH -p short", "#SBATCH -t 00:10:00", f"export PYTHONPATH={ROOT}", "export HELLO=there"):
        assert line in script
    jobs = (queue / "jobs").read_text().split()
    assert len(jobs) == 2
    until(lambda: not any(os.path.exists(f"/proc/{job}") for job in jobs))


@pytest.mark.long
def test_a_job_that_ends_is_replaced_and_jobs_that_do_nothing_are_not_for_ever(work, wanted, queue, monkeypatch):
    import dask

    monkeypatch.setattr(on_dask, "JOBS_AGAIN", 0.5)
    monkeypatch.setattr(on_dask, "LOOK_AT_WORKERS", 0.2)
    table = {"cores": 2, "processes": 2, "memory": "1GB", "interface": "lo"}
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.2s"}):
        work.ask("sums 1", 3, "end_job_once")
        engines.run(work, Blocks(slurm=table))
        assert work.files() == wanted
        assert len((queue / "jobs").read_text().split()) == 2
        again = Sums(work.folder.with_name("again"))
        for number in range(LEAVES):
            again.ask("sums 0", number, "end_job")
        with pytest.raises(InputError, match=r"ended before a task was done|by: the death of its worker"):
            engines.run(again, Blocks(slurm=table))


@pytest.mark.slow
def test_a_queue_that_refuses_gets_a_sentence(work, queue, monkeypatch):
    (queue / "sbatch").write_text('#!/bin/bash\necho "invalid partition specified: shrot" >&2; exit 1\n')
    with pytest.raises(InputError, match=r"the queue refuses a job of \[blocks.slurm\]: .*invalid partition specified"):
        engines.run(work, Blocks(slurm={"cores": 1, "memory": "1GB", "interface": "lo"}))
    with pytest.raises(InputError, match=r"\[blocks.slurm\] makes no SLURMCluster of dask_jobqueue: .*'shape'"):
        engines.run(work, Blocks(slurm={"cores": 1, "memory": "1GB", "shape": 3}))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="by the command sbatch, which this machine does not have"):
        engines.run(work, Blocks(slurm={"cores": 1, "memory": "1GB"}))


def test_the_names_of_all_clusters_are_those_of_dask_jobqueue():
    jobqueue = pytest.importorskip("dask_jobqueue")
    for kind, name in on_dask.NAMES.items():
        assert getattr(jobqueue, name).job_cls.config_name == kind
        assert getattr(Blocks(**{kind: {"jobs": 2}}), kind) == {"jobs": 2}


# ---- status and settings


def test_status_tells_how_far_a_work_is_from_its_files_alone(work, wanted):
    assert status(work)[0] == "sums 0: 0 of 16 blocks"
    assert status(work)[-1] == "nothing is there yet"
    stages = work.stages()
    for number in range(5):
        run_task(work, stages[0], number)
    first = status(work)
    assert first[0].startswith("sums 0: 5 of 16 blocks, the last ")
    assert first[0].endswith("s ago")
    assert first[-1].startswith("the last file was written")
    assert "goes on" not in first[-1]
    for path in work.folder.rglob("*.columns"):
        os.utime(path, (time.time() - 7500, time.time() - 7500))
    assert status(work)[-1] == ("the last file was written 2h05m ago: if no process is at work, the same command goes "
                                "on with the rest")
    with Signs(work.folder) as sign:
        sign.say("sums 0", 9)
        assert f"process {os.getpid()} of " in "\n".join(status(work))
        assert " is at sums 0 9, as it said " in "\n".join(status(work))
    run_inline(work)
    assert status(work)[-1] == "every stage is done"
    assert work.files() == wanted


def test_a_table_of_a_cluster_takes_any_name_and_is_laid_over_that_of_a_base(tmp_path):
    (tmp_path / "base.toml").write_text('name = "x"\n[blocks]\nmemory = "2GB"\n'
                                        '[blocks.slurm]\nqueue = "long"\njobs = 3\n')
    (tmp_path / "run.toml").write_text('base = "base.toml"\n[blocks.slurm]\njobs = 9\n'
                                       'job_extra_directives = ["-A x"]\n')
    settings = config.load(Settings, tmp_path / "run.toml", ["blocks.slurm.walltime=01:00:00", "blocks.size=[4, 5, 6]"])
    wanted = {"queue": "long", "jobs": 9, "job_extra_directives": ["-A x"], "walltime": "01:00:00"}
    assert settings.blocks == Blocks((4, 5, 6), memory="2GB", slurm=wanted)
    (tmp_path / "again.toml").write_text(config.to_toml(settings))
    assert config.load(Settings, tmp_path / "again.toml") == settings
    assert config.from_table(Settings, config.to_table(settings)) == settings


@pytest.mark.parametrize("overrides, told", [
    (["blocks.slurm=3"], "blocks.slurm must be a table, got 3"),
    (["blocks.slurm.a.b=3"], "blocks.slurm is one table; there is no blocks.slurm.a.b"),
    (["blocks.slurm.jobs=0"], "blocks.slurm.jobs must be a number of jobs, at least 1; got 0"),
    (["blocks.slurm.jobs=1", "blocks.address=tcp://x:1"], "blocks.slurm is a second cluster beside blocks.address"),
    (["blocks.slurm.jobs=1", "blocks.engine=local"], "blocks.engine = local uses no cluster: leave out blocks.slurm"),
    (["blocks.size=[0, 1, 1]"], "blocks.size[0] must be at least 1; got 0"),
    (["blocks.memory=lots"], "blocks.memory: memory is written like 2GB, 800MB or 2000000000; got 'lots'"),
    (["blocks.engine=ray"], "blocks.engine must be one of 'auto', 'local', 'dask', 'share', got 'ray'")])
def test_settings_of_blocks_that_make_no_sense_are_refused(overrides, told):
    with pytest.raises(InputError) as error:
        config.load(Settings, None, ["name=x", *overrides])
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("text, wanted", [(0, 0), ("", 0), (5, 5), ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29),
                                          ("800m", 8 * 10**8), ("7B", 7)])
def test_memory_is_read_in_bytes(text, wanted):
    assert bytes_of(text) == wanted
