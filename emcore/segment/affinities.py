"""Affinities as every kernel takes them: checks, channels and edge conventions, and 8 bits that keep what saturates.

Affinities are (c, z, y, x). Channel c at voxel v says whether v and v + offset belong together; the nearest-neighbour
offsets are NEAREST. uint8 stands for the 256 values of a table: PLAIN_TABLE (code / 255) unless another is given.
"""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property

import numpy as np

from emcore.errors import InputError
from emcore.kernels import affinities as kernel
from emcore.segment.arrays import as_array
from emcore.threads import run_parallel, slabs, thread_count
from emcore.volumes import Volume

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
PLAIN_TABLE = (np.arange(256) / 255).astype(np.float32)
FARTHEST = 2**30  # voxels that an offset may lead: positions stay far from the end of 64 bits
TABLE_ATTRIBUTE = "affinity_table"  # a file of encoded affinities carries its table under this name
# no code holds numbers from both sides of one of these or of 1 minus it, so such thresholds decide as in float32;
# between two of them lie that many codes in equal steps of the logit
_FRACTIONS, _STEPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5), (10, 20, 24, 24, 24, 25)


@dataclass(frozen=True, eq=False)
class Affinities:
    """Holds affinities (c, z, y, x) and what they mean; every function that takes affinities takes it or a plain array.

    Everything but the values is checked when the object is made; `check_values` looks at those.

    Args:
        values: (c, z, y, x), float32, float16 or uint8.
        offsets: one (z, y, x) triple for each channel: channel c at voxel v tells whether v and v + offsets[c] belong
            together. By default the first three channels are those of the nearest neighbours, (-1, 0, 0), (0, -1, 0)
            and (0, 0, -1), and no other channel is used.
        edge: "later" (the default); "earlier" says that each value is stored at the other voxel of its pair, so that v
            is joined with v - offsets[c]. The offsets are then turned round once, here.
        table: 256 float32, the affinity that each code of uint8 stands for. The default is code / 255.

    Raises:
        InputError: a shape, dtype, offset or table does not fit.

    Cost:
        Nothing is copied.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = segment.Affinities(np.ones((3, 4, 8, 8), np.float32), [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
        >>> affs.shape
        (4, 8, 8)
    """

    values: np.ndarray
    offsets: Sequence[Sequence[int]] | None = None
    edge: InitVar[str] = "later"
    table: np.ndarray | None = None

    def __post_init__(self, edge: str) -> None:
        values = as_array("affs", self.values)
        if values.ndim != 4:
            raise InputError(f"affs must be (channels, z, y, x); got shape {values.shape}")
        if values.dtype not in (np.float32, np.float16, np.uint8) or not values.dtype.isnative:
            raise InputError(f"affs must be float32, float16 or uint8; got {values.dtype}; convert it, "
                             "or encode_affinities makes uint8 of it")
        triples = [tuple(triple) for triple in signed_offsets(self.offsets, len(values), edge).tolist()]
        for name, value in (("values", values), ("offsets", tuple(triples)),
                            ("table", check_table(self.table, values.dtype))):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        return self.values.shape[1:]

    @cached_property
    def _nearest(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        if len(self.values) < 3:
            raise InputError(f"affs must have at least the 3 channels z, y, x; got shape {self.values.shape}")
        return nearest_channels(self.offsets)

    @property
    def channels(self) -> tuple[int, int, int]:
        """The channels of the edges along z, y and x."""
        return self._nearest[0]

    @property
    def shifts(self) -> tuple[int, int, int]:
        """The edge (v - 1, v) along an axis lies at v - shift along that axis; a shift is 0 or 1."""
        return self._nearest[1]

    def plane(self, axis: int, z: int) -> np.ndarray:
        """Reads the affinities along one axis that are stored in a section.

        Args:
            axis: 0, 1 or 2 for z, y or x.
            z: the number of the section.

        Returns:
            float32 (y, x).
        """
        plane = self.values[self.channels[axis], z]
        return plane.astype(np.float32, copy=False) if self.table is None else self.table[plane]

    def check_values(self, channels: Sequence[int] | None = None, threads: int | None = None,
                     origin: Sequence[int] = (0, 0, 0)) -> None:
        """Refuses a value below 0, above 1 or not a number in some channels.

        Args:
            channels: the channels to look at; by default those of the nearest neighbours.
            threads: how many threads to use; all cores by default.
            origin: the index z, y, x of the first voxel in its volume, for the message. The default is 0, 0, 0.

        Raises:
            InputError: there is such a value; the message says where.
        """
        if self.values.dtype == np.uint8:
            return
        bits, channels = kernel_view(self.values), self.channels if channels is None else channels
        threads = thread_count(threads)
        jobs = [(c, start, stop) for c in channels for start, stop in slabs(self.shape[0], 4 * threads)]
        bad = run_parallel(lambda c, start, stop: kernel.outside(bits[c, start:stop]), jobs, threads)
        for (c, start, stop), found in zip(jobs, bad):
            if found:
                block = self.values[c, start:stop]
                z, y, x = (int(i) for i in np.argwhere(~((block >= 0) & (block <= 1)))[0])
                place = tuple(int(first) + at for first, at in zip(origin, (start + z, y, x)))
                raise InputError(f"affs must lie in 0..1; found {block[z, y, x]} in channel {c} at voxel "
                                 f"{place}; pass the output of a sigmoid, or clip it")


def as_affinities(affs: "Affinities | np.ndarray") -> Affinities:
    """The affinities themselves, or those of an array with the usual meaning."""
    return affs if isinstance(affs, Affinities) else Affinities(affs)


def signed_offsets(offsets: Sequence[Sequence[int]] | None, channels: int, edge: str = "later") -> np.ndarray:
    """One (z, y, x) triple a channel such that channel c at v joins v and v + offset; NEAREST for None.

    edge="earlier": each value lies at the other voxel of its pair, so v is joined with v - offset.
    """
    if edge not in ("later", "earlier"):
        raise InputError(f"edge must be 'later' or 'earlier'; got {edge!r}")
    sign = 1 if edge == "later" else -1
    if offsets is None:
        return sign * np.array(NEAREST, np.int64)
    table = as_array("offsets", offsets)
    if table.shape != (channels, 3) or table.dtype.kind not in "iu":
        raise InputError(f"offsets must be one (z, y, x) triple of whole numbers for each of the {channels} channels; "
                         f"got {table.shape} {table.dtype}")
    if table.size and not -FARTHEST <= int(table.min()) <= int(table.max()) <= FARTHEST:
        raise InputError(f"offsets must lead at most 2**30 voxels along each axis; got {table.tolist()}")
    return np.ascontiguousarray(sign * table.astype(np.int64))


def nearest_channels(offsets: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The channels of the edges along z, y and x, and each one's shift (1 where it lies at the earlier voxel)."""
    triples = [tuple(triple) for triple in offsets]
    found, shifts = [], []
    for axis, name in enumerate("zyx"):
        later = NEAREST[axis]
        earlier = tuple(-step for step in later)
        channel = next((c for c, triple in enumerate(triples) if triple in (later, earlier)), None)
        if channel is None:
            raise InputError(f"offsets hold no nearest neighbour along {name}, {later} or {earlier}; got {triples}")
        found.append(channel)
        shifts.append(int(triples[channel] == earlier))
    return tuple(found), tuple(shifts)


def check_table(table: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """256 float32 from 0 up to 1 for uint8 affinities (PLAIN_TABLE for None), None for floating point."""
    if dtype != np.uint8:
        if table is not None:
            raise InputError(f"table decodes uint8 affinities, but affs are {dtype}; leave table out")
        return None
    if table is None:
        return PLAIN_TABLE
    values = as_array("table", table)
    if values.dtype.kind not in "biuf":
        raise InputError(f"table must be 256 values that rise from 0 to 1; got {values.dtype}")
    values = np.ascontiguousarray(values, np.float32)
    if values.shape != (256,) or values[0] != 0 or values[255] != 1 or not (np.diff(values) > 0).all():
        raise InputError(f"table must be 256 values that rise from 0 to 1; got shape {values.shape}"
                         + (f", {values[0]} to {values[-1]}" if values.size else ""))
    return values


def stored_table(volume: Volume) -> np.ndarray | None:
    """What the codes of a volume in 8 bits stand for, if its file says so."""
    stored = volume.attrs.get(TABLE_ATTRIBUTE)
    if stored is None:
        return None
    try:
        return check_table(np.array(stored, np.float32), volume.dtype)
    except (ValueError, TypeError):  # ragged, or no numbers
        raise InputError(f"the attribute {TABLE_ATTRIBUTE} of {volume.name} must be 256 numbers") from None


def kernel_view(affs: np.ndarray) -> np.ndarray:
    """affs as the kernels take it: float16 as the int16 of its bits, everything else as it is; no copy."""
    return affs.view(np.int16) if affs.dtype == np.float16 else affs


def _make_code() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table of 256 values, the boundaries (2, 128) between the codes of each half, and a start for the search.

    Row 0 are the numbers up to 1/2 above which the code rises, row 1 the distances from 1 of those down to 1/2 where
    it rises: code k and code 255 - k are mirror images, but a decimal fraction and 1 minus it are not, as float32.
    """
    logits = [np.log(value / (1 - value)) for value in _FRACTIONS]
    steps = [np.linspace(logits[i], logits[i + 1], count, endpoint=False) for i, count in enumerate(_STEPS)]
    edges = np.concatenate([*steps, [0.0]])  # 128, of 127 codes
    inner = 1 / (1 + np.exp(-(edges[1:] + edges[:-1]) / 2))
    table = np.concatenate([[0], inner, 1 - inner[::-1], [1]]).astype(np.float32)
    numbers = 1 / (1 + np.exp(-edges))
    boundaries = np.stack([numbers.astype(np.float32), np.float32(1) - (1 - numbers).astype(np.float32)])
    for value, at in zip(_FRACTIONS, np.cumsum([0, *_STEPS])):
        boundaries[:, at] = np.float32(value), np.float32(1) - np.float32(1 - value)
    buckets = (int(np.float32(0.5).view(np.uint32)) >> 16) + 1
    smallest = (np.arange(buckets, dtype=np.uint32) << 16).view(np.float32)
    return table, boundaries, np.stack([np.searchsorted(row, smallest) for row in boundaries]).astype(np.uint8)


LOGIT_TABLE, _BOUNDARIES, _BUCKET_CODES = _make_code()


def encode_affinities(affs: np.ndarray, *, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Stores affinities in 8 bits, in equal steps of the logit, so that thresholds near 0 and 1 keep their meaning.

    A step is about 0.1 of the logit. 0 and 1 are exact, the order is kept, values that a net saturates (.998, .9999)
    stay apart, and the thresholds .1, .01 ... 1e-6, .5, .9, .99 ... divide codes in the same way as they divide
    numbers. Store the table with the codes, in the attribute that TABLE_ATTRIBUTE names.

    Args:
        affs: affinities of any shape, float32 or float16, 0 to 1.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        A pair: codes, uint8 of the same shape, and the table of the 256 float32 that they stand for.

    Raises:
        InputError: a value lies outside of 0 to 1 or is not a number.

    Cost:
        It takes 5.6 ns of one core and 1.1 bytes per value.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> codes, table = segment.encode_affinities(np.array([[[[0, 0.3, 0.999, 1]]]], np.float32))
        >>> segment.decode_affinities(codes, table).round(3)
        array([[[[0.   , 0.303, 0.999, 1.   ]]]], dtype=float32)
    """
    affs = as_array("affs", affs)
    if affs.dtype.kind != "f":
        raise InputError(f"affs must be floating point to be encoded; got {affs.dtype}")
    codes = np.empty(affs.shape, np.uint8)
    if codes.size == 0:
        return codes, LOGIT_TABLE.copy()
    planes, code_planes = np.atleast_2d(affs), np.atleast_2d(codes)  # views, also of strided arrays
    where = list(np.ndindex(planes.shape[:-2]))

    def encode(index: tuple[int, ...]) -> bool:
        plane = np.ascontiguousarray(planes[index], np.float32).reshape(-1)
        return kernel.encode(plane, _BOUNDARIES, _BUCKET_CODES, code_planes[index].reshape(-1))

    for index, bad in zip(where, run_parallel(encode, [(index,) for index in where], thread_count(threads))):
        if bad:
            plane = planes[index]
            value = plane[~((plane >= 0) & (plane <= 1))][0]
            raise InputError(f"affs must lie in 0..1 to be encoded; found {value} in plane {index}")
    return codes, LOGIT_TABLE.copy()


def decode_affinities(codes: np.ndarray, table: np.ndarray | None = None) -> np.ndarray:
    """Turns uint8 codes back into float32 affinities.

    Args:
        codes: uint8 of any shape.
        table: 256 float32, the affinity of each code. The default None is code / 255.

    Returns:
        float32 of the same shape.

    Raises:
        InputError: the codes are not uint8, or the table does not have 256 numbers.

    Cost:
        It takes 3.0 ns of one core and 4.0 bytes per value.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.decode_affinities(np.array([0, 51, 255], np.uint8))
        array([0. , 0.2, 1. ], dtype=float32)
    """
    codes = as_array("codes", codes)
    if codes.dtype != np.uint8:
        raise InputError(f"codes must be uint8; got {codes.dtype}")
    return check_table(table, codes.dtype)[codes]


def above(values: np.ndarray, threshold: float, table: np.ndarray | None = None) -> np.ndarray:
    """Where values are above the threshold, or what codes of 8 bits stand for: code / 255 without a table."""
    if values.dtype != np.uint8:
        return values > threshold
    plain = table is None or table is PLAIN_TABLE
    return (np.arange(256) > threshold * 255 if plain else table > np.float32(threshold))[values]
