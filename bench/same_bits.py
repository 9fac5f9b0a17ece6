"""Whether two versions of emcore compute the same bits: the demo, a tiny run of every recipe, and volumes decoded.

    python -m bench.same_bits record before.json          # in a checkout of one version
    python -m bench.same_bits record after.json           # in a checkout of the other
    python -m bench.same_bits compare before.json after.json

What is compared are values: every tensor, the step and the random state of each checkpoint, log.csv, predictions,
labels, fragments, merges, scores and what a tune found. How files are laid out, the settings and the records may
differ.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEMO = ["infer.layout=contiguous", "train.layout=contiguous", "train.steps=40", "train.save.steps=20",
        "train.validate.steps=20", "train.preview_steps=40"]
# [decode] of each volume; a recipe of its own is written for it
AFFINITIES = {
    "plain": "", "dust": "dust_size = 80\ndust_affinity = 0.2\nremove_size = 20", "boundary": "boundary = 0.3",
    "quantile": 'score = "aff50_his256"\nlow = 0.1', "upper quantile": 'score = "aff85_his256"\nhigh = 0.9',
    "max": 'score = "max"\nthreshold = 0.2', "min": 'score = "min"',
    "waterz": 'ties = "waterz"', "waterz dust": 'ties = "waterz"\ndust_size = 80\nremove_size = 20',
    "calibrated": "bias = [0.5, -0.5, -0.5]\ntemperature = 2.0",
    "sections": 'fragments = "maxima_distance-0.5"\n[decode.link]\niou = 0.4', "minima": 'fragments = "minima"',
}
KINDS = {
    "connected": 'kind = "connected"\nthreshold = 0.6\nremove_size = 10',
    "connected apart": 'kind = "connected"\nthresholds = [0.5, 0.6, 0.7]', "mutex": 'kind = "mutex"',
    "components": 'kind = "components"\nchannels = [0]\nthreshold = 0.6',
    "seeded": 'kind = "components"\nchannels = [1]\nthreshold = 0.5\nseed_threshold = 0.8\nconnectivity = 6',
    "polarity": 'kind = "polarity"\nchannels = [0, 1, 2]\nthreshold = 0.5\nsmall = 10',
    "contour": 'kind = "contour"\nchannels = [0, 1, 2]\nremove_size = 5',
}


# ---- what is run


def python(place: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-2000:]
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{said}")


def script(name: str) -> str:
    return str(ROOT / f"{name}.py")


def recipes() -> dict[str, Path]:
    """Every shipped recipe by the name of its run, wherever it stands in configs."""
    return {path.stem: path for path in sorted((ROOT / "configs").rglob("*.toml"))}


def run_recipe(place: Path, path: Path) -> None:
    # the layout that predicts faster is measured otherwise, and changes the last bits
    python(place, script("train"), "--cfg", str(path), "--smoke", "outputs=outputs", "infer.layout=contiguous")


def run_demo(place: Path) -> None:
    python(place, "-m", "emcore", "synth", "--layout", "plain", "outputs/demo/data", "--shape", "24,160,160",
           "--resolution", "30,8,8", "--samples", "2")
    for name in ("train", "infer", "evaluate"):
        python(place, script(name), "--cfg", str(recipes()["demo"]), *DEMO)
    for threshold in ("0.3", "0.7"):
        python(place, script("infer"), "--cfg", str(recipes()["demo"]), *DEMO, "--cut", threshold)
    python(place, script("evaluate"), "--cfg", str(recipes()["demo"]), *DEMO, "--tune",
           'tune.space.score=["mean", "aff85_his256"]', "tune.space.low=[0.0, 0.1]", "tune.space.high=[0.9, 1.0]")


def run_decoding(place: Path) -> None:
    """Affinities that are invented and then decoded in every way, whole and in 8 bits."""
    random = np.random.default_rng(7)
    coarse = random.random((6, 6, 12, 12))
    smooth = coarse.repeat(5, 1).repeat(8, 2).repeat(8, 3)[:, :28, :90, :92]
    values = np.clip(smooth + random.normal(0, 0.15, smooth.shape), 0, 1).astype(np.float32)
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [-3, 0, 0], [0, -9, 0], [0, 0, -9]]
    for dtype in ("float32", "float16", "uint8"):
        for name, table in {**AFFINITIES, **KINDS}.items():
            folder = place / dtype / name.replace(" ", "_")
            folder.mkdir(parents=True)
            with h5py.File(folder / "volume_prediction.h5", "w") as file:
                stored = file.create_dataset("main", data=np.rint(values * 255).astype(dtype) if dtype == "uint8"
                                             else values.astype(dtype))
                stored.attrs["resolution"] = (30.0, 8.0, 8.0)
                stored.attrs["offset"] = (0.0, 0.0, 0.0)
                stored.attrs["offsets"] = json.dumps(offsets)
            kind = "" if name in KINDS else 'kind = "affinities"\n'
            (folder / "recipe.toml").write_text(f'name = "decoding"\n[decode]\n{kind}{table}\n')
    code = ("import runpy, sys\nfrom pathlib import Path\n"
            "for folder in sorted(Path().glob('*/*')):\n"
            f"    main = runpy.run_path({script('infer')!r})['main']\n"
            "    stored = ['--cfg', str(folder / 'recipe.toml'), '--from', str(folder / 'volume_prediction.h5')]\n"
            "    main(stored)\n"
            "    if 'affinities' in (folder / 'recipe.toml').read_text():\n"
            "        main([*stored, '--cut', '0.65'])\n")
    python(place, "-c", code)


# ---- what came of it


def digest(values: Any) -> str:
    array = np.ascontiguousarray(values)
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def of_tensors(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every tensor and number of a nested table, by its path."""
    import torch

    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from of_tensors(item, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from of_tensors(item, f"{name}/{number}")
    elif isinstance(value, torch.Tensor):
        plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        yield name, digest(plain.view(torch.uint8).numpy() if plain.dim() else plain.numpy())
    elif isinstance(value, int | float | bool) or value is None:
        yield name, repr(value)


def of_checkpoint(path: Path) -> Iterator[tuple[str, str]]:
    import torch

    content = torch.load(path, weights_only=True)
    kept = {name: value for name, value in content.items() if name not in ("config", "version")}
    yield from of_tensors(kept, "")


def of_hdf5(path: Path) -> Iterator[tuple[str, str]]:
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append((name, digest(item[()]))) if hasattr(item, "shape") else None)
    yield from found


def of_scores(path: Path) -> Iterator[tuple[str, str]]:
    for volume, entry in json.loads(path.read_text()).items():
        for row in entry["scores"]:
            yield f"{volume}/{row['score']}/{row['convention']}", repr(row["value"])
        for name in ("curve", "counts"):
            if entry.get(name):
                yield f"{volume}/{name}", json.dumps(entry[name], sort_keys=True)


def of_table(path: Path) -> Iterator[tuple[str, str]]:
    """A CSV file without what a clock says."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    kept = [number for number, name in enumerate(rows[0]) if not name.endswith(("seconds", "_sec", "per_sec"))]
    rows[0] = [RENAMED.get(name, name) for name in rows[0]]
    lines = [[row[number] for number in kept if number < len(row)] for row in rows]
    yield "", hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]


def of_parameters(path: Path) -> Iterator[tuple[str, str]]:
    table = tomllib.loads(path.read_text())["decode"]
    table = {RENAMED.get(name, name): value for name, value in table.items()}
    for name in ("threshold", "statistic", "low", "high"):
        yield name, repr(table.get(name))


READERS = {"checkpoints/step_*.pt": of_checkpoint, "*.h5": of_hdf5, "scores.json": of_scores,
           "best_params.toml": of_parameters, "*.csv": of_table}
RENAMED = {"score": "statistic"}  # columns and settings that older versions called otherwise
CLOCKS = ("speed.csv", "scores.csv")  # the second says what scores.json says


def gathered(place: Path) -> dict[str, str]:
    """Digests of everything below a folder, by path."""
    found = {}
    for pattern, reader in READERS.items():
        for path in sorted(place.rglob(pattern)):
            if path.name not in CLOCKS:
                found |= {f"{path.relative_to(place)}:{name}": value for name, value in reader(path)}
    return found


def record(out: Path, only: Sequence[str], at_once: int) -> None:
    parts = {"demo": run_demo, "decoding": run_decoding}
    parts |= {f"recipe {name}": lambda place, path=path: run_recipe(place, path) for name, path in recipes().items()}
    parts = {name: part for name, part in parts.items() if not only or any(word in name for word in only)}

    def run(name: str) -> tuple[str, dict[str, str]]:
        with tempfile.TemporaryDirectory(prefix="same_bits_") as place:
            parts[name](Path(place))
            found = gathered(Path(place))
        print(f"{name}: {len(found)} values", flush=True)
        return name, found

    with ThreadPoolExecutor(at_once) as pool:
        found = dict(pool.map(run, parts))
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def compare(before: Path, after: Path) -> int:
    """The exit code: 0 where every value that either version has is equal."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    names = sorted(one.keys() & other.keys())
    differing = 0
    for name in names:
        keys = sorted(one[name].keys() | other[name].keys())
        wrong = [key for key in keys if one[name].get(key) != other[name].get(key)]
        differing += len(wrong)
        for key in wrong[:5]:
            was, now = (values[name].get(key, "not there")[:40] for values in (one, other))
            print(f"{name}: {key} was {was}, is {now}")
    for name in sorted(one.keys() ^ other.keys()):
        print(f"{name} is in one of the two alone")
    values = sum(len(one[name]) for name in names)
    print(f"{len(names)} parts, {values} values, {differing} differ")
    return int(bool(differing) or one.keys() != other.keys())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run everything in this checkout and keep digests of the results")
    recording.add_argument("out", type=Path)
    recording.add_argument("--only", nargs="*", default=[], help="parts whose name holds one of these words")
    recording.add_argument("--at-once", type=int, default=2, help="parts that run side by side")
    comparing = commands.add_parser("compare", help="compare the digests of two versions")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "compare":
        return compare(options.before, options.after)
    record(options.out, options.only, options.at_once)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
