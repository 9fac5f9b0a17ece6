"""python -m emcore download NAME [--folder DIR]: the tutorials' public data, resumed after a break and checked.

Bytes go to NAME.part; the final name appears when all are there and the checksum holds. Where none was published, the
sha256 of the first download is kept beside the file and holds from then on.
"""

import argparse
import hashlib
import http.client
import json
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emcore.errors import InputError
from emcore.files import publish, write_text, writing
from emcore.progress import Progress

CHUNK = 1 << 20
PATIENCE = 30.0  # seconds without a byte
ATTEMPTS = 5  # breaks in a row without a byte between them
UNPACKED = 1 << 38  # bytes that an archive may unpack to
DBMIM = "https://huggingface.co/cyd0806/dbmim-neuron-segmentation/resolve/main/weights"
HARVARD = "http://rhoana.rc.fas.harvard.edu/dataset"


@dataclass(frozen=True)
class Source:
    address: str
    folder: str  # where the recipes look for it, below --folder
    about: str
    sha256: str = ""  # where published
    size: int = 0  # bytes, where known

    @property
    def file(self) -> str:
        return self.address.split("?")[0].rsplit("/", 1)[1]


SOURCES: dict[str, tuple[Source, ...]] = {
    "cremi": (Source(f"{HARVARD}/cremi.zip", "datasets/corrected",
                     "CREMI realigned, crack-free: im_A.h5, syn_A.h5 ... (recipes cremi_clefts*)"),),
    "cremi-mirror": (Source("https://huggingface.co/datasets/pytc/tutorial/resolve/main/CREMI.zip",
                            "datasets/corrected", "the same from another server"),),
    "cremi-original": tuple(
        Source(f"https://cremi.org/static/data/sample_{letter}_20160501.hdf", "data/CREMI",
               f"CREMI sample {letter} as the challenge gives it: raw, neuron_ids, clefts (recipes dbmim_*)")
        for letter in "ABC"),
    "snemi": (Source(f"{HARVARD}/snemi.zip", "datasets/SNEMI",
                     "SNEMI3D: train-input.tif, train-labels.tif, test-input.tif (recipes snemi_*)"),),
    "snemi-zenodo": (Source("https://zenodo.org/records/7142003/files/snemi.zip", "datasets/SNEMI",
                            "SNEMI3D from Zenodo: image/train-input.tif, image/test-input.tif"),),
    "isbi2012": tuple(
        Source(f"https://raw.githubusercontent.com/alexklibisz/isbi-2012/master/data/{stack}-volume.tif",
               "downloads/isbi2012", f"ISBI 2012, the {stack} stack, as dbMiM fetches it; then `python -m emcore "
                                     "prepare isbi2012 downloads/isbi2012` (recipes dbmim_pretrain_*)")
        for stack in ("train", "test")),
    "emr50": (Source(f"{HARVARD}/jwr15_synapse.zip", "datasets/jwr15",
                     "EM-R50: synapses of rat cortex with their sides (recipes emr50_*)"),),
    **{f"dbmim-{short}": tuple(
        Source(f"{DBMIM}/{long}/{kind}_latest.pt", f"outputs/hf_weights/weights/{long}", f"dbMiM weights, {kind}")
        for kind in ("pretrained", "finetuned"))
       for short, long in (("r17", "publicem_dbmim_r17"), ("r33", "fullem_mixedmask_dbmim_r33"))},
}
ELSEWHERE = {"fullem": "its archives, 486 GB, are given out to accounts only; get them from "
                       "huggingface.co/datasets/cyd0806/EM_pretrain_data, then see `python -m emcore prepare --help`"}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore download", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="what to fetch; without it everything there is is listed")
    parser.add_argument("--folder", default=".", help="folder that the recipes are started in")
    parser.add_argument("--sizes", action="store_true", help="ask the servers for the sizes in the list")
    options = parser.parse_args(arguments)
    if options.name is None:
        print(listing(options.sizes))
        return 0
    if options.name in ELSEWHERE:
        raise InputError(f"{options.name} cannot be fetched by a command: {ELSEWHERE[options.name]}")
    if options.name not in SOURCES:
        raise InputError(f"there is no data set {options.name!r}; there are {', '.join([*SOURCES, *ELSEWHERE])}")
    for source in SOURCES[options.name]:
        path = fetch(source, Path(options.folder) / source.folder)
        for made in unpack(path) if path.suffix == ".zip" else [path]:
            print(made)
    return 0


def listing(sizes: bool) -> str:
    """What there is to fetch, where it goes, its size."""
    lines = []
    for name, sources in SOURCES.items():
        for source in sources:
            size = (remote_size(source.address) if sizes else 0) or source.size
            shown = f"{size / 2**20:.0f} MiB" if size else "size unknown"
            lines.append(f"{name:<16}{source.about}\n{'':<16}{source.address}  ({shown}) -> {source.folder}")
    lines += [f"{name:<16}{text}" for name, text in ELSEWHERE.items()]
    return "\n".join(lines)


def remote_size(address: str) -> int:
    """Bytes that the server says the file has; 0 where it does not answer."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except (OSError, http.client.HTTPException, ValueError):
        return 0


def fetch(source: Source, folder: Path) -> Path:
    """The path of the whole, checked file; what an earlier run left is continued."""
    target, part = folder / source.file, folder / f"{source.file}.part"
    expected = source.sha256 or known(target)
    if target.exists():
        if expected and digest(target) != expected:
            raise InputError(f"{target} is there, but its sha256 is not {expected[:16]}...: delete it and fetch it "
                             "again")
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        read_all(source, part)
        found = digest(part)
        if expected and found != expected:
            part.unlink()
            raise InputError(f"{source.address} gave a file whose sha256 is {found}, not {expected}: it was deleted; "
                             "the file on the server has changed, or was altered on the way")
        publish(part, target)
        part.with_name(f"{part.name}.tag").unlink(missing_ok=True)
        remember(target, source, found)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None
    if not expected:
        print(f"{target}: sha256 {found} (none was published; it is kept beside the file)", file=sys.stderr)
    return target


def read_all(source: Source, part: Path) -> None:
    """Appends to the part until the server has no more, and starts again where the connection broke."""
    breaks = 0
    with Progress(source.size or None, f"download {source.file}", "bytes") as progress:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if read_on(source, part, before, progress):
                    return
                reason = "the connection broke off"
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError,
                    ssl.SSLError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise InputError(f"{source.address} answers {error.code} {error.reason}; the file may have moved: "
                                     "see the tutorial's page, and put the file into the folder by hand") from None
                reason = str(getattr(error, "reason", error))
            grown = (part.stat().st_size if part.exists() else 0) > before
            breaks = 0 if grown else breaks + 1
            if breaks >= (ATTEMPTS if before else 1):
                kept = f"; {before} bytes are kept in {part}, the same command goes on from there" if before else ""
                raise InputError(f"{source.address} cannot be reached ({reason}){kept}")


def read_on(source: Source, part: Path, start: int, progress: Progress) -> bool:
    """Reads from byte `start`; whether the file is whole now."""
    tag = part.with_name(f"{part.name}.tag")  # what the server called the version that the part is of
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and tag.exists():
        headers["If-Range"] = tag.read_text()
    try:
        answer = urllib.request.urlopen(urllib.request.Request(source.address, headers=headers), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing lies behind the last byte
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if whole == str(start):
                return True
            part.unlink()
            return False
        raise
    with answer:
        continues = answer.status == 206
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            write_text(tag, version)
        length = answer.headers.get("Content-Length")
        total = (start if continues else 0) + int(length) if length and length.isdigit() else None
        if total and shutil.disk_usage(part.parent).free < total - start:
            raise InputError(f"{source.file} takes {total / 2**30:.1f} GiB, more than is free in {part.parent}")
        if total:
            progress.total = total
        count = start if continues else 0
        progress.add(count - progress.done)
        with open(part, "ab" if continues else "wb") as file:
            while True:
                block = answer.read(CHUNK)
                if not block:
                    break
                file.write(block)
                count += len(block)
                progress.add(len(block))
            file.flush()
            os.fsync(file.fileno())
    return total is None or count >= total


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known(target: Path) -> str:
    """The sha256 of the first download of this file, if it was kept."""
    try:
        return str(json.loads(record(target).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def remember(target: Path, source: Source, found: str) -> None:
    facts = {"address": source.address, "sha256": found, "bytes": target.stat().st_size}
    write_text(record(target), json.dumps(facts, indent=1) + "\n")


def record(target: Path) -> Path:
    return target.with_name(f"{target.name}.source.json")


def unpack(path: Path) -> list[Path]:
    """The files of an archive, beside it; those that are there stay. Names that lead elsewhere are refused."""
    made = []
    try:
        with zipfile.ZipFile(path) as archive:
            files = [item for item in archive.infolist() if not item.is_dir()]
            if sum(item.file_size for item in files) > min(UNPACKED, shutil.disk_usage(path.parent).free):
                raise InputError(f"{path} unpacks to more than is free in {path.parent}")
            for item in files:
                target = (path.parent / item.filename).resolve()
                if not target.is_relative_to(path.parent.resolve()):
                    raise InputError(f"{path} holds {item.filename!r}, which leads out of its folder")
                made.append(target)
                if target.exists() and target.stat().st_size == item.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(item) as inside, writing(target) as out:
                    shutil.copyfileobj(inside, out, CHUNK)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} is no whole zip archive ({error}): delete it and fetch it again") from None
    except OSError as error:
        raise InputError(f"cannot unpack {path}: {error.strerror or error}") from None
    return made
