"""Volumes at addresses, and local ones that only tensorstore reads: precomputed, zarr and N5, by the extra remote.

Each process keeps chunks that it has unpacked, up to a size that the caller states. A connection that breaks is tried
again for a while and then told; what could not be fetched is never taken for zeros.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.reading import open_regular
from emcore.system import end_waiting
from emcore.volumes import n5, precomputed
from emcore.volumes.address import Address, parsed, without_secrets
from emcore.volumes.formats import need_tensorstore, refuse_unfinished
from emcore.volumes.ome import levels_of_zarr
from emcore.volumes.scales import Level, chosen
from emcore.volumes.volume import BROKEN, Listed, Listing, Volume, check_volume, first_line, native

CACHE_BYTES = 256 << 20  # A process keeps so much of unpacked chunks where nobody states a size.
MOST_METADATA = 16 << 20  # bytes of one file
MOST_CHUNK_BYTES = 1 << 30
MOST_IN_SHARD = 1 << 26  # chunks of one shard, whose index is read whole
SILENCE = 30  # seconds in which not a byte comes
LONG = 5.0  # seconds after which it is looked whether something else is wrong
PATIENCE, SLOWEST = 600.0, 1e5  # seconds for one box, and bytes a second of its voxels that come on top
FEW = 100  # files of a folder that stand for all
MOST_LOOKED_AT = 100_000  # files of a folder in which a pipe is looked for
PACKED = (".gz", ".br", ".zstd", ".xz", ".bz2")  # endings of chunks that are packed once more
RETRIES = 4  # A request is sent again so often, within a second or two.
WAITS = (1.0, 3.0, 9.0, 27.0)  # seconds between the tries of a box
LOST = re.compile(r"(ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|CANCELLED)\b")
FILES = {"precomputed": ("info",), "zarr": ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"),
         "n5": ("attributes.json",)}
SAMPLES, SAMPLED_BYTES = 8, 64 << 20  # chunks that stand for a volume that cannot be compared whole
_USED: set[int] = set()  # the process in which tensorstore has been at work

Files = dict[tuple[str, str], tuple[bytes, bytes]]  # folder and name: what is in it, the version that its server tells


def tensorstore(what: str) -> ModuleType:
    """The library; it cannot go on in a process that was forked from one in which it was at work."""
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    if _USED and os.getpid() not in _USED:
        raise InputError(f"{what} cannot be read in a process that was forked after a volume had been read through "
                         "tensorstore: start it by spawn, or read in threads")
    return need_tensorstore(f"reading {what}")


@cache
def context(cache_bytes: int) -> Any:
    """What the volumes of this process share: one cache of that size, and how often a request is sent again."""
    again = {"max_retries": RETRIES, "initial_delay": "0.1s", "max_delay": "1s"}
    return tensorstore("a volume").Context({
        "cache_pool": {"total_bytes_limit": cache_bytes},
        **{f"{kind}_request_retries": again for kind in ("http", "gcs", "s3")}})


def patiently(start: Callable[[], Any], what: str, again: int | None = None, bytes_wanted: int = 0,
              look_around: Callable[[], None] = lambda: None) -> Any:
    """The result of a future that start() gives; after a break another one is started, a few times.

    look_around: is called once where a result takes long, and may raise what else is wrong.
    """
    _USED.add(os.getpid())
    patience = PATIENCE + bytes_wanted / SLOWEST
    for number, wait in enumerate((*WAITS[:again], None), start=1):
        future = start()
        try:
            with suppress(TimeoutError):
                return future.result(timeout=LONG)
            look_around()
            return future.result(timeout=patience)
        except TimeoutError:
            future.cancel()
            reason = f"there was no answer in {patience:.0f} s"
        except InputError:
            future.cancel()
            raise
        except BROKEN as error:
            reason = without_secrets(first_line(error))
            if not LOST.match(reason):
                raise InputError(f"{what} cannot be read: {reason}") from None  # its text holds the whole address
        if wait is None:
            raise InputError(f"{what} cannot be read, which was tried {number} times: {reason}")
        print(f"note: {what}: {reason}; it is tried again in {wait:.0f} s", file=sys.stderr, flush=True)
        time.sleep(wait)
    raise AssertionError  # the last wait is None


@contextmanager
def reading(what: Any) -> Iterator[None]:
    """Turns whatever is broken in the metadata of a volume into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (*BROKEN, RecursionError) as error:
        raise InputError(f"{what} cannot be read: {without_secrets(first_line(error))}") from None


# ---- what is there


def read_files(places: Sequence[tuple[Address, str]]) -> Files:
    """The small files that are there, all asked for at once, by the path of their folder and their names."""
    found: Files = {}
    if places and places[0][0].scheme == "file":
        for address, name in places:
            path = Path(address.path) / name
            if path.exists():
                with open_regular(path) as file:
                    found[address.path, name] = file.read(MOST_METADATA + 1), b""
    elif places:
        library, refused = tensorstore(str(places[0][0])), []
        stores = {address: patiently(partial(library.KvStore.open, address.store(), context=context(0)), str(address))
                  for address in dict.fromkeys(address for address, _ in places)}
        asked = [stores[address].read(name, byte_range=slice(0, MOST_METADATA)) for address, name in places]
        for (address, name), future in zip(places, asked):
            try:
                found |= first_bytes(address, name, stores[address], future)
            except InputError as error:  # buckets that may not be listed say so of files that are not there
                if "PERMISSION_DENIED" not in str(error):
                    raise
                refused.append(error)
        if refused and not found:
            raise refused[0]
    for (place, name), (data, _) in found.items():
        if len(data) > MOST_METADATA:
            raise InputError(f"{place}/{name} is larger than {MOST_METADATA >> 20} MiB, too large for what it should "
                             "be")
    return found


def first_bytes(address: Address, name: str, store: Any, future: Any) -> Files:
    """A file that is small enough; a server that is asked for more than there is refuses that and is asked for all."""
    what, begun = str(address.at(name)), iter([future])
    try:
        got = patiently(lambda: next(begun, None) or store.read(name, byte_range=slice(0, MOST_METADATA)), what, 1)
    except InputError as error:
        if "OUT_OF_RANGE" not in str(error):
            raise
        got = patiently(partial(store.read, name), what, 1)
    return {(address.path, name): (got.value, got.stamp.generation)} if got.state == "value" else {}


def look(address: Address) -> tuple[str, list[Level], list[bytes]]:
    """The format of what is at an address, its scales, and what its metadata are."""
    if address.scheme == "file":
        refuse_unfinished(Path(address.path))
    kinds = [address.kind] if address.kind else list(FILES)
    found = read_files([(address, name) for kind in kinds for name in FILES[kind]])
    files = {name: data for (_, name), (data, _) in found.items()}
    kind = next((kind for kind in kinds if files.keys() & set(FILES[kind]) - {".zattrs", ".zmetadata"}), None)
    if kind is None:
        names = " or ".join(FILES[kind][0] for kind in kinds)
        raise InputError(f"there is no volume at {address}: no {names} is there")
    with reading(address):
        if kind == "precomputed":
            scales = scales_of_precomputed(address, files["info"])
        else:
            tell = levels_of_zarr if kind == "zarr" else n5.levels
            scales = tell(address, files, lambda places: {key: value[0] for key, value in read_files(places).items()})
    return kind, scales, [part for key in sorted(found) for part in (key[1].encode(), *found[key])]


def scales_of_precomputed(address: Address, data: bytes) -> list[Level]:
    info, scales = precomputed.checked_info(data, str(address))
    result = []
    for number, scale in enumerate(scales):
        resolution, offset, attributes = precomputed.grid_of(info, scale, scales[0], str(address))
        driver = {"driver": "neuroglancer_precomputed", "scale_index": number}
        result.append(Level(scale.key, address, driver, resolution, offset, attributes,
                            not precomputed.has_channel_axis(info)))
    return result


# ---- opening


def open_address(reference: str | Address, kind: str | None = None, scale: Any = None,
                 cache_bytes: int = CACHE_BYTES) -> Volume:
    """The volume at an address; reads its metadata and no voxel. scale: a name, a number, nm, or None, the finest."""
    address = parsed(reference) if isinstance(reference, str) else reference
    found, scales, _ = look(address)
    wanted = address.scale if scale is None else scale
    if isinstance(wanted, str) and found != "precomputed" and (not scales or "/" in wanted.strip("/")):
        return open_address(address.at(wanted.strip("/")), kind, None, cache_bytes)
    return volume_of(chosen(scales, wanted, kind, str(address)), cache_bytes)


def volume_of(scale: Level, cache_bytes: int) -> Volume:
    title = scale.title()
    with reading(title):
        stored = connect(scale, cache_bytes)
        store = stored.store
        shape, chunks = tuple(store.shape), tuple(map(int, store.chunk_layout.read_chunk.shape))
        dtype = np.dtype(store.dtype.numpy_dtype)
        check_volume(title, shape, dtype)
        check_sizes(title, store, dtype)
        chunks = tuple(max(1, min(chunk, length)) for chunk, length in zip(chunks, shape))
        volume = Volume(title, shape, native(dtype), scale.resolution, scale.offset, scale.attributes, chunks,
                        partial(connect, scale, cache_bytes), forks=False)
        volume.connection[:] = [os.getpid(), stored]
    return volume


def keeping(volume: Volume, cache_bytes: int) -> Volume:
    """A volume that was opened here, with another size of what is kept of it."""
    return volume_of(volume.connect.args[0], cache_bytes)


def check_sizes(title: str, store: Any, dtype: np.dtype) -> None:
    """Refuses chunks that would fill the memory when one voxel of them is read."""
    read, write = (np.prod(list(map(int, chunk.shape)), dtype=object) for chunk in
                   (store.chunk_layout.read_chunk, store.chunk_layout.write_chunk))
    if read * dtype.itemsize > MOST_CHUNK_BYTES:
        raise InputError(f"{title} claims chunks of {read} voxels; more than {MOST_CHUNK_BYTES >> 30} GiB each are "
                         "not read")
    if write > MOST_IN_SHARD * read:
        raise InputError(f"{title} claims shards of {write // read} chunks; more than {MOST_IN_SHARD} are not read")


def connect(scale: Level, cache_bytes: int) -> "Stored":
    """The opened scale, its axes in our order and its first voxel at 0."""
    title, library = scale.title(), tensorstore(scale.title())
    if scale.address.scheme == "file" and "scale_index" in scale.driver:
        refuse_packed(title, f"{scale.address.path}/{scale.name}", MOST_LOOKED_AT if scale.address.sparse else FEW)
    # A precomputed volume is complete unless somebody says otherwise; of zarr and N5 it is part of the format that
    # chunks without a value of their own are left out, unless their writer said that none was.
    complete = (scale.driver["driver"] == "neuroglancer_precomputed" or scale.whole) and not scale.address.sparse
    spec = {**scale.driver, "kvstore": scale.address.store(), "fill_missing_data_reads": not complete,
            "recheck_cached_metadata": "open", "recheck_cached_data": "open"}
    store = patiently(partial(library.open, spec, read=True, open=True, context=context(cache_bytes)), title,
                      0 if scale.address.scheme == "file" else None)
    if scale.driver["driver"] not in ("zarr", "zarr3"):
        store = store.transpose(list(reversed(range(store.ndim))))  # they count x first
    if scale.drops_channels:
        store = store[0]
    if scale.axes and len(scale.axes) != store.ndim:
        raise InputError(f"{title} has {store.ndim} axes, and the names of {len(scale.axes)}: {', '.join(scale.axes)}")
    leading = 0  # axes t and c of length one
    while scale.axes and leading < len(scale.axes) - 3 and leading < store.ndim and store.shape[leading] == 1:
        leading += 1
    store = store[(0,) * leading] if leading else store
    return Stored(title, store[library.d[:].translate_to[0]] if store.ndim else store,
                  scale.address.path if scale.address.scheme == "file" else None)


@dataclass(frozen=True, eq=False)
class Stored:
    """An opened volume, which is read in boxes."""

    name: str
    store: Any
    folder: str | None = None  # on this machine

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        library = tensorstore(self.name)
        part = self.store[box][library.d[:].translate_to[0]]
        made: list[np.ndarray] = []

        def start() -> Any:
            made[:] = [np.empty(part.shape, part.dtype.numpy_dtype)]  # chunks of a try that failed may still come in
            return library.array(made[0], copy=False).write(part)

        where = ", ".join(f"{span.start}:{span.stop}" for span in box)
        try:
            patiently(start, f"{self.name} at [{where}]", 0 if self.folder else None,
                      part.size * part.dtype.numpy_dtype.itemsize, partial(refuse_pipes, self.folder))
        except InputError as error:
            if "NOT_FOUND" not in str(error):
                raise
            raise InputError(f"{error}; where its publisher left out chunks that are 0, #missing=0 behind the address "
                             "(before that a :SCALE) says so") from None
        return made[0]


def refuse_packed(title: str, folder: str, most: int) -> None:
    """Refuses packed chunks among so many files: tensorstore would take NAME.gz for a chunk that is missing."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in islice(entries, most):
            if entry.name.endswith(PACKED):
                how = f": gunzip -r {folder}" if entry.name.endswith(".gz") else ""
                raise InputError(f"{title} has packed chunks, such as {entry.name}; unpack them first{how}")


def refuse_pipes(folder: str | None) -> None:
    """Refuses a folder with a pipe among its files, which would be waited for without end."""
    count = 0
    for place, _, names in os.walk(folder) if folder else ():
        for name in names:
            count += 1
            if count > MOST_LOOKED_AT:
                return
            path = os.path.join(place, name)
            if os.path.exists(path) and not os.path.isfile(path):
                end_waiting(path)
                raise InputError(f"{path} is no regular file, as every chunk of a volume is")


# ---- lists of scales


def list_address(reference: str | Address) -> tuple[str, Listing]:
    """The format at an address, and its scales with how their chunks are stored."""
    address = parsed(reference) if isinstance(reference, str) else reference
    kind, scales, _ = look(address)
    found = [scale for scale in scales if address.scale in (None, scale.name)]
    found, arrays = found or [chosen(scales, address.scale, None, str(address))], []
    for scale in found:
        try:
            arrays.append(listed(scale))
        except InputError as error:  # an array that is no volume does not hide the others of its group
            if not scale.unrelated or len(found) == 1:
                raise
            print(f"note: {error}", file=sys.stderr)
    return kind, Listing(arrays)


def listed(scale: Level) -> Listed:
    volume = volume_of(scale, 0)
    store = volume.connection[1].store
    return Listed(scale.name, volume.shape, volume.dtype, volume.chunks, encoding(store))


def encoding(store: Any) -> str:
    """How the chunks of a volume are packed, in a few words."""
    said = store.codec.to_json() if store.codec is not None else {}
    said.pop("driver", None)
    read, write = (tuple(map(int, chunk.shape)) for chunk in
                   (store.chunk_layout.read_chunk, store.chunk_layout.write_chunk))
    words = [re.sub(r'["{}\[\]]', "", json.dumps(said, separators=(", ", " "))) or "uncompressed"]
    return ", ".join([*words, *([f"shards of {' x '.join(map(str, write))}"] if read != write else [])])


class Identity(NamedTuple):
    """What a volume at an address is known by."""

    address: str
    metadata: list[bytes]
    samples: list[bytes]


def identity(reference: str) -> Identity:
    """The address, the metadata files with the versions that the server tells, and the values of a few chunks.

    A volume that was made anew under its old address differs in them, unless only a few of its chunks do.
    """
    address = parsed(reference)
    _, scales, told = look(address)
    volume = volume_of(chosen(scales, address.scale, None, str(address)), 0)
    number = np.random.default_rng(0)
    counts = [-(-length // chunk) for length, chunk in zip(volume.shape, volume.chunks)]
    most = max(1, SAMPLED_BYTES // (int(np.prod(volume.chunks, dtype=object)) * volume.dtype.itemsize))
    samples = []
    for _ in range(min(SAMPLES, most)):
        box = tuple(slice(low := int(number.integers(count)) * chunk, min(low + chunk, length))
                    for count, chunk, length in zip(counts, volume.chunks, volume.shape))
        try:
            samples.append(volume[box].tobytes())
        except InputError as error:
            if "NOT_FOUND" not in str(error):
                raise
            samples.append(b"missing")
    return Identity(str(address), told, samples)


# ---- folders, as emcore/volumes/formats.py wants them


def folder(path: Path, dataset: str | None, kind: str | None = None, sparse: bool = False) -> Address:
    return Address(kind, "file", "", os.path.abspath(path), "", dataset, sparse)


def open_file(path: Path, dataset: str | None, kind: str | None) -> Volume:
    """The volume in a folder that only tensorstore reads: N5, and precomputed but for plain raw chunks."""
    return open_address(folder(path, dataset), kind)


def list_file(path: Path) -> Listing:
    return list_address(folder(path, None))[1]


def create_file(path: Path, *_: Any) -> AbstractContextManager:
    raise InputError(f"{path}: N5 is read and not written here; a name that ends in .zarr is")
