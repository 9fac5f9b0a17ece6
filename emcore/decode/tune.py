"""evaluate.py --tune: the best [decode] settings for stored predictions with a truth, by [tune].

All stages are kept in tune.jsonl, so that a killed tune goes on where it stopped, and a later one adds to it.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import emcore
from emcore import config
from emcore.decode.tune_left_out import write_left_out
from emcore.decode.tune_processes import Stage, run
from emcore.decode.tune_space import (
    AFTER,
    BEFORE,
    Thresholds,
    drawn_points,
    every_point,
    read_space,
    read_thresholds,
    tree_of,
)
from emcore.decode.tune_stages import NET, PER_FRAGMENT, Runs, Scored, Task, curve_stage, decoded_stage, identity
from emcore.decode.tune_store import STOPPED, Row, opened
from emcore.errors import InputError
from emcore.files import csv_text, write_text
from emcore.metrics.nodes import RUN_OBJECTIVES, node_table
from emcore.metrics.partitions import OBJECTIVES
from emcore.progress import Progress, duration
from emcore.segment.skeleton_files import read_skeletons
from emcore.settings import Settings
from emcore.settings.data import result_name
from emcore.settings.decode import AffinityDecode, NoDecode
from emcore.volumes import open_volume
from emcore.volumes.address import located

FILE, FILE_OF_RUNS = "tune.jsonl", "tune_run_length.jsonl"  # all finished stages; they score different things
OLD_FILE = "tune.db"  # in which older versions kept the stages


@dataclass(frozen=True)
class Parameters:
    decode: AffinityDecode


def tune(settings: Settings, results: Path, stored: Sequence[str] = (), minutes: float | None = None,
         draws: int | None = None, limit: float | None = None) -> list[Row]:
    """Every finished stage of results after searching the space, best first; tune.csv and best_params.toml beside them.

    stored: predictions in the order of the volumes, instead of those in results. minutes: after them no stage is
    begun, but the best point is still confirmed. draws: so many random points instead of every combination. limit:
    seconds after which a stage is given up; it is tried again only without a limit or with a larger one.
    """
    start = time.monotonic()
    check(settings, draws, limit)
    base = settings.decode if isinstance(settings.decode, AffinityDecode) else AffinityDecode()
    choices, thresholds = read_space(settings.tune.space), read_thresholds(settings.tune.space)
    points = (every_point(base, choices) if draws is None
              else drawn_points(base, choices, thresholds, settings.seed, draws))
    task = Task(find_sources(settings, results, stored), settings.evaluate.convention, settings.evaluate.border_nm,
                settings.data.resolution, runs_of(settings))
    if (results / OLD_FILE).exists():
        print(f"{results / OLD_FILE} is of an older version and is not read: its stages are done again; delete it")
    with opened(results / (FILE if task.runs is None else FILE_OF_RUNS), digests(task)) as stages:
        def work(jobs: list[Stage], deadline: float | None = None) -> None:
            if not jobs:
                return
            with Progress(len(jobs), "tune", "stages") as progress:
                for row in run(jobs, settings.tune.processes, deadline, limit, progress):
                    stages.add(row)

        def known() -> set[str]:
            return {row.key for row in stages.rows()
                    if row.kind != STOPPED or (limit is not None and row.seconds >= limit)}

        is_decoded = draws is not None and any(name in AFTER for name in choices)
        jobs = decoded_jobs(task, points, known()) if is_decoded else curve_jobs(task, points, thresholds, known())
        print(f"{len(points)} points of {len(task.sources)} volumes, {len(jobs)} stages to do", flush=True)
        work(jobs, None if minutes is None else start + 60 * minutes)
        objective = settings.tune.objective
        confirmed = [base, *best_points(base, stages.rows(), objective, settings.tune.confirm)]
        work(decoded_jobs(task, confirmed, known()))
        rows = sorted(stages.rows(), key=lambda row: value(row, objective))
    write_table(results / "tune.csv", rows, objective)
    drawn = {decoded_key(point) for point in points} if is_decoded else None  # others were chosen by all volumes
    candidates = [row for row in rows if (row.kind == "curve" if drawn is None else row.key in drawn)]
    write_left_out(results / "tune_left_out.csv", task.sources, candidates, objective)
    stopped = sum(row.kind == STOPPED for row in rows)
    if stopped:
        print(f"{stopped} points took longer than their stage had and were given up: tune.csv marks them {STOPPED}")
    best_row = next((row for row in rows if row.kind == "decoded"), None)
    if best_row is None:
        raise InputError(f"no decoding ended within --tune-trial-seconds {limit:g}, so there is no best one: give more")
    write_parameters(results / "best_params.toml", best_row, settings)
    base_row = next(row for row in rows if row.key == decoded_key(base))
    so_far = told(base_row, objective) if base_row.kind == "decoded" else "not decoded in time"
    print(f"{objective} {told(best_row, objective)}, with the settings so far {so_far}; "
          f"{duration(time.monotonic() - start)}\n{results / 'best_params.toml'}")
    return rows


def check(settings: Settings, draws: int | None, limit: float | None) -> None:
    if not isinstance(settings.decode, NoDecode | AffinityDecode):
        raise InputError(f'a tune searches decode.kind = "affinities"; the config has {settings.decode.kind!r}')
    if isinstance(settings.decode, AffinityDecode) and settings.decode.learned is not None:
        raise InputError("a tune does not know decode.learned, whose threshold is a probability and needs no search: "
                         "leave the table out, such as by decode.learned=none")
    known = *OBJECTIVES, *RUN_OBJECTIVES
    if settings.tune.objective not in known:
        raise InputError(f"tune.objective must be one of {', '.join(known)}; got {settings.tune.objective!r}")
    if draws is not None and draws < 1:
        raise InputError(f"--tune-random must be at least 1; got {draws}")
    if limit is not None and not 0 < limit < float("inf"):
        raise InputError(f"--tune-trial-seconds must be a number of seconds above 0; got {limit:g}")


def runs_of(settings: Settings) -> Runs | None:
    """What run lengths are scored by; they are scored where the objective asks for them, as tracing takes a while."""
    if settings.tune.objective not in RUN_OBJECTIVES:
        return None
    file, labelled = settings.evaluate.skeletons, [volume for volume in getattr(settings.data, settings.tune.volumes)
                                                   if volume.label is not None]
    if file is not None and len(labelled) > 1:
        raise InputError(f"evaluate.skeletons names the skeletons of one volume, but {len(labelled)} volumes of "
                         f"data.{settings.tune.volumes} have a label: leave it out, and the truth of each is traced, "
                         "or tune by one volume")
    return Runs(file, settings.data)


def find_sources(settings: Settings, results: Path, stored: Sequence[str]) -> tuple[Scored, ...]:
    """The volumes with a label, each with its prediction."""
    kind = settings.tune.volumes
    data = replace(settings.data, test=getattr(settings.data, kind))
    numbers = [number for number, volume in enumerate(data.test) if volume.label is not None]
    if not numbers:
        raise InputError(f"there is no truth to tune by: no volume of data.{kind} has a label")
    if len(stored) % len(numbers):
        raise InputError(f"--from must be given once for each of the {len(numbers)} volumes of data.{kind} that have a "
                         f"label, and of several nets once for each volume of the first, then of the second and so "
                         f"on; got {len(stored)}")
    sources = []
    for place in range(max(len(numbers), len(stored))):
        net, number = place // len(numbers) + 1, numbers[place % len(numbers)]
        name = result_name(data, number)
        prediction = stored[place] if stored else str(results / f"{name}_prediction.h5")
        if not stored and not Path(prediction).exists():
            raise InputError(f"there is no {prediction}: run infer.py first, or name a stored prediction by --from")
        told = name if len(stored) <= len(numbers) else f"{name}{NET}{net}"
        sources.append(Scored(told, prediction, located(data.folder, data.test[number].label), net))
    if len({source.name for source in sources}) < len(sources):
        raise InputError(f"two volumes of data.{kind} have one name: set `name` of one of them")
    return tuple(sources)


def digests(task: Task) -> dict[str, str]:
    """What the file of a tune is bound to, each by a digest that changes with it."""
    found = {"version of emcore": emcore.__version__,
             "rule of scoring": f"{task.convention}, {task.border_nm:g} nm, {task.resolution}"}
    if task.runs is not None:
        data, nodes = task.runs.data, node_table(read_skeletons(task.runs.file) if task.runs.file else {})
        digest = hashlib.blake2b(b"".join(np.ascontiguousarray(column).tobytes() for column in nodes), digest_size=16)
        found["rule of run lengths"] = f"{data.background}, {data.ignore}, {digest.hexdigest()}"
    for source in task.sources:
        found[f"prediction of {source.name}"] = identity(open_volume(source.prediction))
        found[f"truth of {source.name}"] = identity(open_volume(source.truth, kind="labels"))
    return found


# ---- stages


def curve_jobs(task: Task, points: list[AffinityDecode], thresholds: Thresholds, known: set[str]) -> list[Stage]:
    """A job for every watershed that still lacks a merge statistic."""
    groups: dict[AffinityDecode, list[AffinityDecode]] = {}
    for point in dict.fromkeys(map(tree_of, points)):
        if curve_key(point, thresholds) not in known:
            groups.setdefault(replace(point, statistic=AffinityDecode.statistic), []).append(point)
    return [Stage("curve", curve_stage, (task, shared, tuple(point.statistic for point in group), thresholds),
                [(curve_key(point, thresholds), config.to_table(point)) for point in group])
            for shared, group in groups.items()]


def decoded_jobs(task: Task, points: list[AffinityDecode], known: set[str]) -> list[Stage]:
    return [Stage("decoded", decoded_stage, (task, point), [(decoded_key(point), config.to_table(point))])
            for point in dict.fromkeys(points) if decoded_key(point) not in known]


def curve_key(point: AffinityDecode, thresholds: Thresholds) -> str:
    return json.dumps(["curve", config.to_table(tree_of(point)), thresholds], sort_keys=True)


def decoded_key(point: AffinityDecode) -> str:
    return json.dumps(["decoded", config.to_table(point)], sort_keys=True)


def best_points(base: AffinityDecode, rows: list[Row], objective: str, count: int) -> list[AffinityDecode]:
    """The best curves at their best thresholds, and what [decode] does after the cut; one of those that score alike."""
    points: dict[tuple, AffinityDecode] = {}
    for row in sorted((row for row in rows if row.kind == "curve"), key=lambda row: value(row, objective)):
        tree, found = config.from_table(AffinityDecode, row.decode), row.found[objective]
        kept = {name: getattr(tree, name) for name in BEFORE}
        points.setdefault(tuple(found["scores"].values()), replace(base, **kept, threshold=found["threshold"]))
    return list(points.values())[:count]


# ---- what is written


def value(row: Row, objective: str) -> float:
    """The row's value of an objective; undefined ones and stopped stages come last."""
    if row.kind == STOPPED:
        return float("inf")
    number = row.found[objective]["scores"][objective]
    return number if number == number else float("inf")


def told(row: Row, objective: str) -> str:
    """The value of a decoding, VOI and ARAND beside it, and how fine its fragments are, which a row of an older version
    does not say."""
    found = row.found[objective]
    beside = [f"{name} {found['scores'][name]:.4f}" for name in ("voi", "adapted_rand") if name != objective]
    size = found.get(PER_FRAGMENT)
    beside += [f"one fragment for every {size:.0f} voxels"] if size else []
    return f"{value(row, objective):.4f} ({', '.join(beside)})"


def write_table(path: Path, rows: list[Row], objective: str) -> None:
    """One line a row, best first: what it did, settings that differ somewhere, its threshold, its scores, the voxels of
    a fragment (empty where an older version did not count them), seconds."""
    plain = [flat(row.decode) for row in rows]
    names = [name for name in dict.fromkeys(name for settings in plain for name in settings)
             if name in ("statistic", "low", "high") or len({str(settings.get(name)) for settings in plain}) > 1]
    names = [name for name in names if name != "threshold"]
    scores = next((list(row.found[objective]["scores"]) for row in rows if row.found), [])
    lines = [["stage", *names, "threshold", *scores, PER_FRAGMENT, "seconds"]]
    for row, settings in zip(rows, plain):
        found = row.found.get(objective)
        values = [""] * (2 + len(scores))
        if found:
            size = found.get(PER_FRAGMENT)
            values = [found["threshold"], *(round(found["scores"][name], 6) for name in scores),
                      "" if size is None else round(size, 1)]
        lines.append([row.kind, *(settings.get(name, "") for name in names), *values, round(row.seconds, 3)])
    write_text(path, csv_text(lines))


def heat_table(rows: list[Row], objective: str) -> tuple[list[str], dict[str, list[str]], np.ndarray]:
    """(merge scores, low and high of every watershed, best value of each curve); nan where there is none."""
    best: dict[tuple[str, tuple[float, float]], float] = {}
    for row in rows:
        if row.kind == "curve":
            place = row.decode["statistic"], (row.decode["low"], row.decode["high"])
            best[place] = min(best.get(place, float("inf")), value(row, objective))
    names, pairs = sorted({name for name, _ in best}), sorted({pair for _, pair in best})
    values = np.array([[best.get((name, pair), np.nan) for pair in pairs] for name in names]).reshape(
        len(names), len(pairs))
    ends = {"low": [f"{low:.4g}" for low, _ in pairs], "high": [f"{high:.4g}" for _, high in pairs]}
    return names, ends, values


def flat(table: dict[str, Any]) -> dict[str, Any]:
    """A table with the settings of its tables named table_setting."""
    found = {}
    for name, entry in table.items():
        found |= {f"{name}_{inner}": one for inner, one in entry.items()} if isinstance(entry, dict) else {name: entry}
    return found


def write_parameters(path: Path, row: Row, settings: Settings) -> None:
    """A [decode] table that --params of infer.py and evaluate.py lays over a config."""
    point = config.from_table(AffinityDecode, row.decode)
    scores = row.found[settings.tune.objective]["scores"]
    said = ", ".join(f"{name} {scores[name]:.4f}" for name in (*OBJECTIVES, *RUN_OBJECTIVES) if name in scores)
    lines = [f"# found by evaluate.py --tune for {settings.name}: {said}",
             "# use: infer.py --cfg CONFIG --params THIS_FILE"]
    write_text(path, "\n".join(lines) + "\n" + config.to_toml(Parameters(point)))
