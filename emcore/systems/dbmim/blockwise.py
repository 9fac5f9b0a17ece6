"""python -m emcore blockwise: what predicting in blocks on their own costs at their seams, and how fast it is.

A rehearsal of volumes too large for one prediction, as dbMiM does it: each block with its halo is normalised and
predicted by itself, its core is kept, and the stitched affinities are segmented as a whole. Scores are of all voxels
(full), of those at planes between blocks (seam) and of the others (nonseam). infer.py has no such seams: its windows
stand on one lattice and see the whole volume's intensities.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from emcore import config, metrics, results
from emcore.decode.affinities import read_affinities, segmentation_of
from emcore.engine import checkpoint, ranks, weights
from emcore.engine.arithmetic.mode import fast_precision
from emcore.engine.memory import keep_pages
from emcore.errors import InputError
from emcore.files import reported, write_text
from emcore.metrics.placement import box, placed
from emcore.prediction.streaming import predict
from emcore.segment import Affinities
from emcore.settings import Settings
from emcore.settings.data import result_name
from emcore.settings.decode import AffinityDecode
from emcore.settings.target import affinity_offsets
from emcore.systems.dbmim import published
from emcore.systems.dbmim.sweep import (
    CALIBRATION,
    KEYS,
    RECORD,
    agreement,
    mean_rows,
    seed_boundary,
    threshold_rows,
    told,
    true_affinities,
    write_rows,
)
from emcore.volumes import Volume, open_volume
from emcore.volumes.address import located

REGIONS = ("full", "seam", "nonseam")
GROUP = ("variant", "region", *(key for key in KEYS if key not in CALIBRATION))
COLUMNS = ("sample", "variant", "region", "seam_fraction", "boundary_ignore_fraction",
           *(name for name in RECORD if name not in ("sample", *CALIBRATION)))
Triple = tuple[int, int, int]


def predict_blocks(model: nn.Module, image: Volume, settings: Settings, halo: Triple,
                   precision: str = "fp32") -> tuple[np.ndarray, int, float]:
    """(stitched prediction (c, z, y, x), number of blocks, seconds) of blocks that know nothing of each other."""
    shape, chunk = image.shape[-3:], settings.evaluate.blockwise.chunk
    infer, out, count, start = replace(settings.infer, dtype="float32"), None, 0, time.perf_counter()
    for corner in product(*(range(0, n, c) for n, c in zip(shape, chunk))):
        core = [(low, min(low + c, n)) for low, c, n in zip(corner, chunk, shape)]
        wide = [(max(0, low - h), min(high + h, n)) for (low, high), h, n in zip(core, halo, shape)]
        block = image[tuple(slice(*span) for span in wide)]
        values = predict(model, block, window=settings.infer.window or settings.data.patch, infer=infer,
                         data=settings.data, offsets=affinity_offsets(settings.target), arithmetic=precision)
        if out is None:
            out = np.empty((len(values), *shape), np.float32)
        inner = tuple(slice(low - first, high - first) for (low, high), (first, _) in zip(core, wide))
        out[(slice(None), *(slice(*span) for span in core))] = values[(slice(None), *inner)]
        count += 1
    return out, count, time.perf_counter() - start


def written_offsets(settings: Settings, count: int) -> list[list[int]] | None:
    """Of the channels that [infer] keeps."""
    offsets = affinity_offsets(settings.target) or []
    kept = [list(offsets[channel]) for channel in settings.infer.select or range(count) if channel < len(offsets)]
    return kept or None


def seam_mask(shape: Sequence[int], chunk: Sequence[int], width: Sequence[int]) -> np.ndarray:
    """True within `width` voxels on either side of a plane between blocks."""
    out = np.zeros(tuple(shape), bool)
    for axis in range(3):
        for plane in range(chunk[axis], shape[axis], chunk[axis]):
            near = [slice(None)] * 3
            near[axis] = slice(max(0, plane - width[axis]), plane + width[axis])
            out[tuple(near)] = True
    return out


def score_blocks(settings: Settings, name: str, variant: str, halo: Triple, stitched: Volume, truth: Volume,
                 made: tuple[int, float]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(records of the three regions, throughput) of a stitched prediction; made: blocks and seconds it took."""
    start, truth_start, shape = placed(stitched, truth, settings.evaluate.crop)
    labels = truth[box(truth_start, shape)]
    affs = read_affinities(stitched, settings.decode)
    clock = time.perf_counter()
    segmentation = segmentation_of(affs, settings.decode)
    fragments = segmentation.fragments
    fragment_seconds = time.perf_counter() - clock
    clock = time.perf_counter()
    graph = segmentation.graph
    graph_seconds = time.perf_counter() - clock
    tree = segmentation.tree
    spent = time.perf_counter() - clock + fragment_seconds
    inside = box(start, shape)
    blocks = settings.evaluate.blockwise
    whole = seam_mask(fragments.shape, blocks.chunk, blocks.seam)
    seams, voxels = whole[inside], whole.size
    borders = metrics.box_border_mask(labels, settings.evaluate.border_xy, settings.evaluate.border_z)
    sweep = settings.evaluate.sweep
    thresholds = sweep.thresholds if sweep else (settings.decode.threshold,)
    common = {"sample": name, "variant": variant, "seam_fraction": float(seams.mean()),
              "boundary_ignore_fraction": float((borders & (labels > 0)).mean()), "backend": "waterz",
              "waterz_scoring": settings.decode.statistic, "boundary_threshold": seed_boundary(settings.decode),
              "inference_sec": made[1], "postprocess_sec": spent / len(thresholds),
              **agreement(Affinities(affs.values[(slice(None), *inside)], affs.offsets, table=affs.table),
                          true_affinities(labels))}
    ignored = (0, *settings.data.background, *settings.data.ignore)
    records = []
    for region, left_out in zip(REGIONS, (borders, borders | ~seams, borders | seams)):
        clock = time.perf_counter()
        rows = list(threshold_rows(metrics.contingency(labels, fragments[inside], ignored, (), left_out), tree,
                                   thresholds))
        seconds = (time.perf_counter() - clock) / len(thresholds)
        records += [{key: (common | row | {"region": region, "metrics_sec": seconds}).get(key, "") for key in COLUMNS}
                    for row in rows]
    window = settings.infer.window or settings.data.patch
    sizes = {"window": window, "stride": [round(n * (1 - share)) for n, share in zip(window, settings.infer.overlaps)],
             "chunk": blocks.chunk, "halo": halo}
    throughput = {"sample": name, "variant": variant,
                  **{f"{what}_{axis}": n for what, triple in sizes.items() for axis, n in zip("zyx", triple)},
                  "num_chunks": made[0], "inference_sec": made[1], "total_voxels": voxels,
                  "voxels_per_sec": voxels / made[1], "core_voxels_sum": voxels, "seam_fraction": float(whole.mean()),
                  "fragment_sec": fragment_seconds, "rag_sec": graph_seconds, "num_fragments": graph.fragments,
                  "num_rag_edges": len(graph.u),
                  "mean_boundary_count": float(graph.count.mean()) if len(graph.u) else 0.0,
                  "rag_edges_per_mvoxel": 1e6 * len(graph.u) / voxels}
    return records, throughput


def summarised(settings: Settings, records: list[dict[str, Any]], throughput: list[dict[str, Any]],
               volumes: int) -> dict[str, Any]:
    groups = mean_rows(records, GROUP)
    best = {}
    for region in ("full", "seam"):
        for name, field in (("voi_sum", "voi_sum"), ("adapted_rand", "adapted_rand_error")):
            rows = [row for row in groups if row["region"] == region and row["n"] == volumes and row[field] is not None]
            best[f"best_{region}_by_{name}"] = min(rows, key=lambda row: row[field], default=None)
    return {"args": {"infer": config.to_table(settings.infer), "decode": config.to_table(settings.decode),
                     "evaluate": config.to_table(settings.evaluate)},
            "throughput_records": throughput, "per_group": groups, "failures": [], **best}


def variants(settings: Settings) -> Iterator[tuple[str, Triple]]:
    yield "halo", settings.evaluate.blockwise.halo
    if settings.evaluate.blockwise.without_halo:
        yield "no_halo", (0, 0, 0)


def main(arguments: Sequence[str]) -> int:
    """Predicts, segments and scores the test volumes in blocks of [evaluate.blockwise]."""
    parser = argparse.ArgumentParser(prog="python -m emcore blockwise", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--checkpoint", help="file to predict with, best, or a name that python -m emcore models "
                        "lists; the newest of the run by default")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as evaluate.blockwise.halo=[0,0,0]")
    options, more = parser.parse_known_args(arguments)
    settings = config.load(Settings, options.cfg, [*options.overrides, *more])
    if not isinstance(settings.decode, AffinityDecode):
        raise InputError(f"blockwise agglomerates affinities; decode.kind is {settings.decode.kind}")
    scored = [number for number, volume in enumerate(settings.data.test) if volume.label is not None]
    if not scored:
        raise InputError("nothing could be scored: no volume of data.test has a label")
    path, content, _ = weights.taken(results.run_folder(settings), options.checkpoint or settings.infer.checkpoint)
    content = published.translated(content)
    device = ranks.choose_device(settings.device)
    keep_pages(device.type)
    folder = results.folder_of(settings, path, checkpoint.step_of(content))
    model = checkpoint.model_of(content, path, device, settings.infer.weights)
    precision = fast_precision(settings.train.precision, device.type)
    records, throughput = [], []
    for number in scored:
        volume, name = settings.data.test[number], result_name(settings.data, number)
        image, truth = (open_volume(located(settings.data.folder, reference), kind=kind)
                        for reference, kind in ((volume.image, "image"), (volume.label, "labels")))
        for variant, halo in variants(settings):
            values, blocks, seconds = predict_blocks(model, image, settings, halo, precision)
            stitched = replace(open_volume(values), name=f"{name}, {variant}", resolution=image.resolution,
                               offset=image.offset, attrs={"offsets": written_offsets(settings, len(values))})
            rows, speed = score_blocks(settings, name, variant, halo, stitched, truth, (blocks, seconds))
            records += rows
            throughput.append(speed)
            print(f"{name}, {variant}: {blocks} blocks, {speed['voxels_per_sec']:.0f} voxels/s, "
                  f"{speed['seam_fraction']:.1%} at seams", flush=True)
    summary = summarised(settings, records, throughput, len(scored))
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "blockwise_scale_records.csv", COLUMNS, records)
    write_rows(folder / "blockwise_throughput.csv", list(throughput[0]), throughput)
    for name, content in (("records", records), ("summary", summary)):
        write_text(folder / f"blockwise_scale_{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    for region in ("full", "seam"):
        print(f"{region}: {told(summary[f'best_{region}_by_voi_sum'])}")
    return 0
