"""From a stored prediction to one labels file by way of blocks, and from that file to another cut.

    A_prediction.h5          what is decoded
    A_labels.h5              the labels: its dataset reads the blocks
    A_labels.blocks/         plan.json, and a folder for every stage; a cut again takes what stands there

A run that was killed goes on by the same command, from the files that are there and valid.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from emcore import config
from emcore.blocks import density, engines, status
from emcore.blocks.alive import Signs, living
from emcore.blocks.choice import Choice, Task, choose
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.joined import FOLDER, LabelWork
from emcore.blocks.mutex_faces import reach_of
from emcore.blocks.windows import Source
from emcore.blocks.work import digest_of, run_task
from emcore.decode.labels import check_end, sizes_of
from emcore.decode.learned import groups_of, net_for, reach_for
from emcore.errors import InputError
from emcore.files import create_once, reported, write_bytes, write_text
from emcore.reading import open_regular
from emcore.record import ATTRIBUTE, LABELS, changed, has_labels, listed, of_edits, of_source
from emcore.record import read as read_record
from emcore.segment import Edit, read_edits, write_edits
from emcore.segment.edit_files import check_edits, digest_of_edits
from emcore.settings.blocks import Blocks
from emcore.settings.decode import AffinityDecode, Decode, MutexDecode, PartnersDecode
from emcore.volumes import list_datasets, open_volume, split_reference
from emcore.volumes.blocks import attributes_joined
from emcore.volumes.stamp import stamp

PLAN = "plan.json"
ABOUT = "blocks"  # the attribute of labels that tells how to find their blocks


def decode_in_blocks(prediction: Path, settings: Decode, out: Path, choice: Choice, blocks: Blocks,
                     record: dict[str, Any]) -> Path:
    """Writes labels like decode.labels.decode, but in the blocks of the choice; a killed run goes on."""
    prediction, place = prediction.absolute(), out.absolute()  # workers may stand in other folders
    source, before = open_volume(prediction), stamp(prediction)
    folder = place.with_suffix(FOLDER)
    grid, content = choice.grid, record["prediction"]["digest"]
    about = {"folder": folder.name, "block": list(grid.block), "content": content,
             "prediction": beside(prediction, place.parent), "end": end_for(folder, settings)}
    if getattr(settings, "learned", None) is not None:
        net_for(source, settings)  # One that does not fit is refused before anything is written.
        about |= {"classifier": f"classifier-{record['classifier']['digest'][:12]}.json",
                  "channels": digest_of(groups_of(source))}
    if isinstance(settings, PartnersDecode):
        about["resolution"] = list(sizes_of(source))
    plan = {**about, "shape": list(grid.shape), "decode": config.to_table(settings)}
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        create_once(folder / PLAN, written_plan(plan))
    if "classifier" in about:
        keep_classifier(folder / about["classifier"], settings.learned.file, record["classifier"]["digest"])
    begun = None if blocks.size else block_begun(out, content)  # perhaps by another process just now, which has
    if begun is not None and begun != grid.block:  # another memory, and so other blocks: they are taken
        grid = Grid(grid.shape, begun)
        about["block"] = plan["block"] = list(begun)
    work = work_for(folder, grid, str(prediction), with_end(settings, about), about)
    with running(folder, plan, finished=out.exists()):
        engines.run(work, replace(blocks, workers=choice.workers))
        mend(work, blocks)
        if not is_source(prediction, before, work.content):
            tidy(folder)
            raise InputError(f"{prediction} changed while it was decoded: run the same command again")
        work.join(place, source.resolution, source.offset,
                  {"decode": config.to_table(settings), ATTRIBUTE: record, ABOUT: {**about, "stamp": before}})
        tidy(folder)
    return out


def cut_in_blocks(labels: Path, threshold: float | None, out: Path, blocks: Blocks,
                  edits: Sequence[Edit] = ()) -> Path:
    """Writes the labels of another threshold, of the merges that stand beside labels in blocks; edits are held.

    None takes the threshold of the labels that are there.
    """
    labels, edits = labels.absolute(), check_edits(edits)  # Workers may stand in other folders.
    work = work_of(labels)
    if not isinstance(work, AffinityWork):
        raise InputError(f"{labels} has no merges, so it cannot be cut: only decode.kind = affinities makes some")
    try:
        before = open_volume(labels, LABELS)
    except InputError as damage:
        raise InputError(f"{damage}; infer.py without --cut and --edits makes the labels whole again") from None
    prediction, said, record = Path(work.source.path), attributes_joined(labels, LABELS), read_record(labels, LABELS)
    if split_reference(prediction)[0].exists() and not is_source(prediction, said[ABOUT].get("stamp"), work.content):
        raise InputError(f"{labels} was decoded from another prediction than {prediction}: run infer.py, which decodes "
                         "the one that is there")
    threshold = work.settings.threshold if threshold is None else threshold
    check_end(labels, work.end, threshold)
    work = replace(work.at(threshold), edits=tuple(edits))
    table = config.to_table(replace(config.from_table(AffinityDecode, said["decode"], "decode"), threshold=threshold))
    kept = {"edits": f"edits-{digest_of_edits(edits)[:12]}.csv"} if edits else {}
    said[ABOUT] = {name: value for name, value in said[ABOUT].items() if name != "edits"} | kept
    about = {name: value for name, value in said[ABOUT].items() if name != "stamp"}
    plan = {**about, "shape": list(work.grid.shape), "decode": table}
    if kept:
        write_edits(work.folder / kept["edits"], edits)
    with running(work.folder, plan, finished=True):
        engines.run(work, blocks)
        mend(work, blocks)
        made_of = {name: value for name, value in (record or {}).items() if name != "edits"}
        made_by = {ATTRIBUTE: {**made_of, "decode": table, **of_edits(edits)}} if record else {}
        said = {"decode": table, ABOUT: said[ABOUT], **made_by}
        work.join(out.absolute(), before.resolution, before.offset, said)
    return out


def end_for(folder: Path, settings: Decode) -> float:
    """Up to which threshold merges are found: where the settings name no end, as far as those that may be there."""
    if not isinstance(settings, AffinityDecode) or settings.end:
        return getattr(settings, "end", 0.0)
    earlier = (read_plan(folder) or {}).get("end")
    return max(settings.threshold, earlier) if isinstance(earlier, float) and earlier <= 1 else settings.threshold


def with_end(settings: Decode, about: dict[str, Any]) -> Decode:
    """The settings, with the end that a plan, or the attributes of labels, tell of their merges."""
    return replace(settings, end=float(about["end"])) if isinstance(settings, AffinityDecode) else settings


def mend(work: LabelWork, blocks: Blocks) -> None:
    """Looks at the labels of processes that share files: of the shares of others each knows but the names."""
    stage = work.stages()[-1]
    for number in range(stage.count if engines.engine_of(blocks) == "share" else 0):
        if not work.is_done(stage, number):
            run_task(work, stage, number)


def is_source(prediction: Path, before: str | None, content: str) -> bool:
    """Whether a prediction is the one whose record or voxels have this digest; before: the stamp that it had."""
    if before is not None and stamp(prediction) == before and read_record(prediction) is None:
        return True  # if there is no record all of it would be read
    return of_source(prediction)["digest"] == content


def choice_of(prediction: Path, settings: Decode, blocks: Blocks, out: Path, record: dict[str, Any]) -> Choice:
    """How to decode a stored prediction; a run that was begun goes on in its blocks, and advice would come too late."""
    source = open_volume(prediction)
    channels = source.shape[0] if source.ndim == 4 else 1
    reach = reach_of(source, settings) if isinstance(settings, MutexDecode) else reach_for(source, settings)
    task = Task(source.shape[-3:], channels, source.dtype.itemsize, settings, reach)
    begun = block_begun(out, record["prediction"]["digest"])
    choice = choose(task, blocks if begun is None or blocks.size else replace(blocks, size=begun))
    return choice if begun or choice.grid is None else choice._replace(advice=density.advice(prediction, settings))


def work_for(folder: Path, grid: Grid, prediction: str, settings: Decode, about: dict[str, Any]) -> LabelWork:
    """The stages that decode a prediction by these settings; about: what a plan, or labels, say of them."""
    content = str(about["content"])
    if isinstance(settings, AffinityDecode):
        if settings.learned is not None:
            from emcore.blocks.learned_work import LearnedWork

            return LearnedWork(folder, grid, Source(prediction, settings), content,
                               classifier=Path(about["classifier"]).name, channels=str(about["channels"]))
        return AffinityWork(folder, grid, Source(prediction, settings), content)
    if isinstance(settings, MutexDecode):
        from emcore.blocks.mutex_work import MutexWork

        return MutexWork(folder, grid, prediction, settings, content)
    if isinstance(settings, PartnersDecode):
        from emcore.blocks.partner_work import PartnerWork

        return PartnerWork(folder, grid, prediction, settings, content, tuple(map(float, about["resolution"])))
    from emcore.blocks.kinds import PieceWork

    return PieceWork(folder, grid, prediction, settings, content)


def keep_classifier(copy: Path, file: str, digest: str) -> None:
    """Copies a classifier beside the blocks, as workers may stand in other folders and later cuts may find it changed.

    digest: that of the record, by which the stages are named.
    """
    with open_regular(file) as source:
        data = source.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(f"{file} changed while infer.py was at work: run the same command again")
    if not copy.exists():
        write_bytes(copy, data)


def is_in_blocks(labels: Path) -> bool:
    """Whether labels are there and lie in blocks, of which some may be damaged."""
    return labels.suffix == ".h5" and has_labels(labels) and ABOUT in attributes_joined(labels, LABELS)


def work_of(labels: Path) -> LabelWork | None:
    """The work whose blocks a labels file reads; None where its labels do not lie in blocks."""
    if not is_in_blocks(labels):
        return None
    said = attributes_joined(labels, LABELS)
    try:
        about, shape = said[ABOUT], next(item.shape for item in list_datasets(labels) if item.name == LABELS)
        grid = Grid(shape, tuple(int(size) for size in about["block"]))
        prediction = str(labels.parent / about["prediction"])
        folder = labels.parent / Path(about["folder"]).name
        settings = with_end(config.from_table(Decode, said["decode"], "decode"), about)
        if len(grid.block) != 3 or min(grid.block) < 1:
            raise ValueError
        work = work_for(folder, grid, prediction, settings, about)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{labels} does not say how its blocks were made: it is damaged; run infer.py again") from None
    if isinstance(work, AffinityWork) and isinstance(about.get("edits"), str):
        work = replace(work, edits=tuple(read_edits(folder / Path(about["edits"]).name)))
    return work


def damaged_blocks(labels: Path) -> list[Path]:
    """The blocks of labels that are missing, or that do not hold what was written; every voxel is read. The labels
    themselves, where they do not say which blocks they have."""
    try:
        work = work_of(labels)
    except InputError:
        return [labels]
    if work is None:
        return []
    stage = work.stages()[-1]
    return [work.path(stage, number) for number in range(stage.count) if not work.is_done(stage, number)]


def beside(path: Path, folder: Path) -> str:
    """A path relative to a folder where it lies in it, else absolute."""
    path, folder = path.absolute(), folder.absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


# ---- one plan at a time


@contextmanager
def running(folder: Path, plan: dict[str, Any], finished: bool) -> Iterator[None]:
    """Sets up the plan of a run, unless another run is at work by another plan; shows that this one lives."""
    stored = read_plan(folder)
    if stored is not None and stored != plan:
        if other := at_work(folder):
            raise InputError(f"{folder} is being made with other settings ({listed(changed(stored, plan))}), by "
                             f"{other}. Wait for its end, or end it")
        if stored.get("content") != plan["content"] and not finished:
            raise InputError(f"{folder} was begun from another prediction than the one that is there now: remove that "
                             "folder to begin anew")
    if stored != plan:
        write_text(folder / PLAN, written_plan(plan))
    with Signs(folder):
        yield


def written_plan(plan: dict[str, Any]) -> str:
    """The text of a plan's file."""
    return json.dumps(plan, indent=1) + "\n"


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a folder; None where there is none that can be read, as after a damage to it."""
    try:
        found = json.loads((folder / PLAN).read_text())
        return found if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def at_work(folder: Path) -> str | None:
    """A process that is at work in a folder, in words."""
    for words, written in living(folder):
        return (f"process {words['process']} of {words['host']}, which showed itself {time.time() - written:.0f} s "
                "ago")
    return None


def block_begun(out: Path, content: str) -> tuple[int, int, int] | None:
    """The size of the blocks of a run that was begun for these labels and this prediction: its files fit no other."""
    stored = read_plan(out.with_suffix(FOLDER))
    try:
        depth, height, width = map(int, stored["block"]) if stored and stored["content"] == content else (0, 0, 0)
        return (depth, height, width) if min(depth, height, width) > 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def tidy(folder: Path) -> None:
    """Removes the files of stages that no labels beside the folder stand on."""
    wanted: set[str] = set()
    for labels in folder.parent.glob(f"{escape(folder.stem)}*.h5"):
        try:
            work = work_of(labels)
        except InputError:
            return  # these may stand on any of them
        if work is not None and work.folder == folder:
            wanted |= {stage.folder.partition("/")[0] for stage in work.stages()}
    for entry in folder.iterdir():
        if entry.is_dir() and "-" in entry.name and entry.name not in wanted:
            shutil.rmtree(entry, ignore_errors=True)


# ---- where a run stands


def status_of(prediction: Path, labels: Path) -> list[str]:
    """How far a prediction and its labels are, by files alone."""
    lines = [f"{prediction}: {'there' if prediction.exists() else begun_prediction(prediction)}"]
    if has_labels(labels):
        lines.append(f"{labels}: there")
    plan = read_plan(labels.with_suffix(FOLDER))
    if plan is None:
        return lines if has_labels(labels) else [*lines, f"{labels}: not begun"]
    try:
        grid = Grid(tuple(map(int, plan["shape"])), tuple(map(int, plan["block"])))
        settings = with_end(config.from_table(Decode, plan["decode"], "decode"), plan)
        work = work_for(labels.with_suffix(FOLDER), grid, plan["prediction"], settings, plan)
    except (KeyError, TypeError, ValueError):
        return [*lines, f"{labels.with_suffix(FOLDER) / PLAN} cannot be read: the next run writes it anew"]
    return [*lines, *(f"{labels}: {line}" for line in status.status(work))]


def begun_prediction(prediction: Path) -> str:
    folder = prediction.with_suffix(FOLDER)
    plan = read_plan(folder)
    if plan is None:
        return "not begun"
    try:
        count = Grid(tuple(map(int, plan["shape"])), tuple(map(int, plan["part"]))).blocks()
    except (KeyError, TypeError, ValueError):
        return f"begun; {folder / PLAN} cannot be read"
    done = sum(1 for _ in folder.glob("tiles-*/*/*.h5"))
    return f"begun, {done} of {count} parts are there"
