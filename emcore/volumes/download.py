"""python -m emcore download NAME [--folder DIR]: the tutorials' public data, resumed after a break and checked.

Bytes go to NAME.part; the final name appears when all are there and the checksum holds. Where none was published, the
sha256 of the first download is kept beside the file and holds from then on. Addresses are https; http is taken from
this machine, and where the sha256 stands in the table below.
"""

import argparse
import hashlib
import http.client
import ipaddress
import json
import lzma
import os
import re
import shutil
import ssl
import stat
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcore.errors import InputError
from emcore.files import publish, write_text, writing
from emcore.progress import Progress, Working
from emcore.reading import is_inside, open_regular, read_text, shown
from emcore.volumes.volume import first_line

CHUNK = 1 << 20
PATIENCE = 30.0  # seconds without a byte
ATTEMPTS = 5  # breaks in a row without a byte between them
LARGEST = 1 << 37  # bytes of one file
UNPACKED = 1 << 38  # bytes that an archive may unpack to
MOST_MEMBERS = 1_000_000
VERSION = re.compile(r'"[!-~]{0,200}"|[A-Z][a-z]{2}, [ -~]{10,40}')  # an ETag that is not weak, or a date
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
BROKEN_ARCHIVE = (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OverflowError, MemoryError, KeyError,
                  zlib.error, lzma.LZMAError, struct.error)
DBMIM = "https://huggingface.co/cyd0806/dbmim-neuron-segmentation/resolve/main/weights"
HARVARD = "https://rhoana.rc.fas.harvard.edu/dataset"


@dataclass(frozen=True)
class Download:
    address: str
    folder: str  # where the recipes look for it, below --folder
    about: str
    sha256: str = ""  # empty where none is published
    size: int = 0  # bytes, where known

    @property
    def file(self) -> str:
        return self.address.split("?")[0].rsplit("/", 1)[1]


SOURCES: dict[str, tuple[Download, ...]] = {
    "cremi": (Download(f"{HARVARD}/cremi.zip", "datasets/corrected",
                     "CREMI realigned, crack-free: im_A.h5, syn_A.h5 ... (recipes cremi_clefts*)"),),
    "cremi-mirror": (Download("https://huggingface.co/datasets/pytc/tutorial/resolve/main/CREMI.zip",
                            "datasets/corrected", "the same from another server"),),
    "cremi-original": tuple(
        Download(f"https://cremi.org/static/data/sample_{letter}_20160501.hdf", "data/CREMI",
               f"CREMI sample {letter} as the challenge gives it: raw, neuron_ids, clefts (recipes dbmim_*)")
        for letter in "ABC"),
    "snemi": (Download(f"{HARVARD}/snemi.zip", "datasets/SNEMI",
                     "SNEMI3D: train-input.tif, train-labels.tif, test-input.tif (recipes snemi_*)"),),
    "snemi-zenodo": (Download("https://zenodo.org/records/7142003/files/snemi.zip", "datasets/SNEMI",
                            "SNEMI3D from Zenodo: image/train-input.tif, image/test-input.tif"),),
    "isbi2012": tuple(
        Download(f"https://raw.githubusercontent.com/alexklibisz/isbi-2012/master/data/{stack}-volume.tif",
               "downloads/isbi2012", f"ISBI 2012, the {stack} stack, as dbMiM fetches it; then `python -m emcore "
                                     "prepare isbi2012 downloads/isbi2012` (recipes dbmim_pretrain_*)")
        for stack in ("train", "test")),
    "emr50": (Download(f"{HARVARD}/jwr15_synapse.zip", "datasets/jwr15",
                     "EM-R50: synapses of rat cortex with their sides (recipes emr50_*)"),),
    **{f"dbmim-{short}": tuple(
        Download(f"{DBMIM}/{long}/{kind}_latest.pt", f"outputs/hf_weights/weights/{long}", f"dbMiM weights, {kind}")
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
            size = (remote_size(source) if sizes else 0) or source.size
            shown = f"{size / 2**20:.0f} MiB" if size else "size unknown"
            lines.append(f"{name:<16}{source.about}\n{'':<16}{source.address}  ({shown}) -> {source.folder}")
    lines += [f"{name:<16}{text}" for name, text in ELSEWHERE.items()]
    return "\n".join(lines)


def remote_size(source: Download) -> int:
    """Bytes that the server says the file has; 0 where it does not answer."""
    try:
        request = urllib.request.Request(source.address, method="HEAD")
        with opener(source).open(request, timeout=PATIENCE) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except (OSError, http.client.HTTPException, ValueError):
        return 0


def check_address(address: str, sha256: str) -> None:
    """Refuses an address from which the bytes could be altered on the way without being noticed."""
    scheme = address.partition(":")[0]
    if scheme == "https" or (scheme == "http" and (sha256 or is_loopback(address))):
        return
    raise InputError(f"{address} is not https, and no sha256 is known for what lies there: what arrives could have "
                     "been altered on the way; fetch it from an https address")


def is_loopback(address: str) -> bool:
    try:
        host = urllib.parse.urlsplit(address).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address only where that one would be asked itself."""

    def __init__(self, sha256: str):
        self.sha256 = sha256

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, address: str) -> Any:
        check_address(address, self.sha256)
        return super().redirect_request(request, file, code, message, headers, address)


def opener(source: Download) -> urllib.request.OpenerDirector:
    check_address(source.address, source.sha256)
    return urllib.request.build_opener(CheckedRedirects(source.sha256))


def fetch(source: Download, folder: Path) -> Path:
    """The path of the whole, checked file; what an earlier run left is continued."""
    target, part = folder / source.file, folder / f"{source.file}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(target, part, record(target), tag_of(part))
        expected = source.sha256 or known(target)
        if target.exists():
            found = digest(target)
            if expected and found != expected:
                raise InputError(f"{target} is there, but its sha256 is not {expected[:16]}...: delete it and fetch it "
                                 "again")
            if not expected:  # put there by hand: what it is now holds from now on
                remember(target, source, found)
            return target
        read_all(source, part)
        found = digest(part)
        if expected and found != expected:
            part.unlink()
            tag_of(part).unlink(missing_ok=True)
            raise InputError(f"{source.address} gave a file whose sha256 is {found}, not {expected}: it was deleted; "
                             "the file on the server has changed, or was altered on the way"
                             + ("" if source.sha256 else f"; to take it all the same delete {record(target)}"))
        remember(part, source, found, target)  # first: a file that has its name has its checksum
        publish(part, target)
        tag_of(part).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None
    if not expected:
        print(f"{target}: sha256 {found} (none was published; it is kept beside the file)", file=sys.stderr)
    return target


def refuse_links(*paths: Path) -> None:
    """Refuses names that are there already and are no file of their own: a link would be written through."""
    for path in paths:
        try:
            about = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise InputError(f"{path} is a link, or no file at all; delete it, so that nothing is written elsewhere")


def tag_of(part: Path) -> Path:
    """Where stands what the server called the version that the part is of."""
    return part.with_name(f"{part.name}.tag")


def read_all(source: Download, part: Path) -> None:
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


def read_on(source: Download, part: Path, start: int, progress: Progress) -> bool:
    """Reads from byte `start`; whether the file is whole now."""
    tag = tag_of(part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and tag.exists():
        known_as = read_text(tag)
        headers["If-Range"] = known_as if VERSION.fullmatch(known_as) else '"none"'
    try:
        answer = opener(source).open(urllib.request.Request(source.address, headers=headers), timeout=PATIENCE)
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
        told = answer.headers.get("Content-Range")
        if continues and told and not told.startswith(f"bytes {start}-"):
            raise InputError(f"{source.address} gave another part of the file than it was asked for; delete {part} and "
                             "start again")
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if version and VERSION.fullmatch(version):
            write_text(tag, version)
        length = answer.headers.get("Content-Length")
        total = (start if continues else 0) + int(length) if length and length.isdigit() else None
        limit = source.size or LARGEST
        if total and total > limit:
            raise InputError(f"{source.address} offers {total} bytes; {source.file} has at most {limit}")
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
                count += len(block)
                if count > limit:
                    raise InputError(f"{source.address} gives more than {limit} bytes, the most that {source.file} can "
                                     f"have; delete {part}")
                file.write(block)
                progress.add(len(block))
            file.flush()
            os.fsync(file.fileno())
    return total is None or count >= total


def digest(path: Path) -> str:
    with open(path, "rb") as file, Working(f"checking {path}"):
        return hashlib.file_digest(file, "sha256").hexdigest()


def known(target: Path) -> str:
    """The sha256 of the first download of this file; empty where there was none."""
    path = record(target)
    try:
        found = json.loads(read_text(path))["sha256"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{64}", found):
        raise InputError(f"{path} does not say the sha256 of the first download any more; if {target.name} is to be "
                         "trusted delete the record, and the next run writes it again")
    return found


def remember(path: Path, source: Download, found: str, target: Path | None = None) -> None:
    facts = {"address": source.address, "sha256": found, "bytes": path.stat().st_size}
    write_text(record(target or path), json.dumps(facts, indent=1) + "\n")


def record(target: Path) -> Path:
    return target.with_name(f"{target.name}.source.json")


def unpack(path: Path) -> list[Path]:
    """The files of an archive, beside it; those that are there stay. Names that lead elsewhere are refused."""
    made = []
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            files = members(path, archive)
            total = sum(item.file_size for item in files)
            with Progress(total, f"unpack {path.name}", "bytes") as progress:
                for item in files:
                    target = path.parent / item.filename
                    made.append(target)
                    if is_unpacked(target, item):
                        progress.add(item.file_size, found=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(item) as inside, writing(target) as out:
                        while block := inside.read(CHUNK):
                            out.write(block)
                            progress.add(len(block))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot unpack {path}: {error.strerror or error}") from None
    except BROKEN_ARCHIVE as error:
        raise InputError(f"{path} is no whole zip archive ({shown(first_line(error))}): delete it and fetch it "
                         "again") from None
    return made


def members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive, all looked at before the first is written."""
    files = [item for item in archive.infolist() if not item.is_dir()]
    if len(files) > MOST_MEMBERS:
        raise InputError(f"{path} holds {len(files)} files; more than {MOST_MEMBERS} are not unpacked")
    if sum(item.file_size for item in files) > min(UNPACKED, shutil.disk_usage(path.parent).free):
        raise InputError(f"{path} unpacks to more than is free in {path.parent}")
    seen = Counter(item.filename for item in files)
    reserved = {path.name, record(path).name}
    for item in files:
        name = item.filename
        parts = name.split("/")
        if (not name.isprintable() or set(name) & set("\\:") or any(part in ("", ".", "..") for part in parts)
                or not is_inside(path.parent / name, path.parent)):
            raise InputError(f"{path} holds {shown(name)}, which leads out of its folder")
        if name in reserved or seen[name] > 1:
            raise InputError(f"{path} holds {shown(name)} twice, or as its own name")
        if item.external_attr >> 16 and stat.S_IFMT(item.external_attr >> 16) not in (0, stat.S_IFREG):
            raise InputError(f"{path} holds {shown(name)}, which is a link or no file")
        if item.flag_bits & 1:
            raise InputError(f"{path} holds {shown(name)}, which is encrypted; unpack it by hand: unzip asks for the "
                             "password")
        if item.compress_type not in METHODS:
            raise InputError(f"{path} holds {shown(name)}, which is compressed by method {item.compress_type}, which "
                             "is not known here; unpack it by hand")
    return files


def is_unpacked(target: Path, item: zipfile.ZipInfo) -> bool:
    """Whether a file is there with the length and the checksum that the archive says."""
    try:
        if target.stat().st_size != item.file_size:
            return False
        checksum = 0
        with open_regular(target) as file:
            while block := file.read(CHUNK):
                checksum = zlib.crc32(block, checksum)
        return checksum == item.CRC
    except FileNotFoundError:
        return False
