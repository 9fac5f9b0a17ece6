"""[decode]: how a prediction becomes labels; `kind` says which of these tables it is."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import WrongSetting, above, at_least, parsed, within
from emcore.segment.seeds import check_fragments
from emcore.segment.statistics import parse_statistic

Triple = tuple[int, int, int]


def check_three(channels: tuple[int, ...]) -> None:
    if channels and (len(channels) != 3 or len(set(channels)) != 3 or min(channels) < 0):
        raise WrongSetting("channels must be three different channels, those along z, y and x, or none; "
                           f"got {list(channels)}")


@dataclass(frozen=True)
class NoDecode:
    kind: Literal["none"] = "none"  # make no labels


@dataclass(frozen=True)
class Link:
    iou: float = 0.5  # IoU from which a segment that ends joins the one in the next section; 0: never
    best_buddy: bool = True  # join two segments that both end if each overlaps the other most
    one_sided: float = 0.8  # join also if this share of the smaller area overlaps; 0: never
    one_sided_size: int = 100  # voxels that the smaller area must have for one_sided
    affinity: float = 0.0  # mean z affinity over the overlap that is required to join
    min_size: int = 0  # a segment with fewer voxels in a section is not joined

    def __post_init__(self) -> None:
        within(0, 1, self, "iou", "one_sided", "affinity")
        at_least(0, self, "one_sided_size", "min_size")


@dataclass(frozen=True)
class Learned:
    file: str = ""  # the classifier of contacts, which python -m emcore learn-contacts writes
    # fragments merge first, while 1 - the mean of the nearest and the shortest longer affinities is below it
    first_threshold: float = 0.2
    first_size: float = 0.01  # cubic micrometres: two clusters that are both larger are left to the classifier

    def __post_init__(self) -> None:
        within(0, 1, self, "first_threshold")
        above(0, self, "first_size")
        if not self.file:
            raise WrongSetting("file must name the classifier, which python -m emcore learn-contacts writes")


@dataclass(frozen=True)
class AffinityDecode:
    kind: Literal["affinities"] = "affinities"  # watershed of the affinities along z, y and x, then agglomeration
    # those along z, y, x, taken as nearest neighbours; empty: found by the offsets of the prediction
    channels: tuple[int, ...] = ()
    threshold: float = 0.5  # merge segments while 1 - statistic is below this
    # the largest threshold that the merges serve; 0: whole volumes keep every merge, blocks those below the threshold
    end: float = 0.0
    # numbers added to the logits of the affinities along z, y and x
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    temperature: float = 1.0  # the logits are then divided by this
    # or faces, faces-2 (smoothed twice), or floods of sections: maxima_distance-0.5, minima, hminima-0.1, grid-10
    fragments: str = "watershed"
    statistic: str = "mean"  # statistic of the affinities between two regions: mean, max, min, aff85_his256, ...
    # equal merges and plateaus: by a rule that holds for blocks and threads alike, or one by one as waterz takes them
    ties: Literal["canonical", "waterz"] = "canonical"
    low: float = 1e-4  # affinities at or below this never join voxels in the watershed
    high: float = 0.9999  # affinities at or above this always join voxels in the watershed
    boundary: float = 0.0  # voxels whose mean y/x affinity is below this become background
    dust_size: int = 0  # a segment of fewer voxels joins the neighbour with the best affinity
    dust_affinity: float = 0.0  # affinity that is required for that
    remove_size: int = 0  # segments of fewer voxels are removed at the end
    link: Link | None = None  # join segments across sections at the end
    # merge in two stages, the second by a classifier; threshold and end are then of the mean probability of a border
    learned: Learned | None = None

    def __post_init__(self) -> None:
        check_three(self.channels)
        if self.learned is not None:
            self.check_learned()
        at_least(0, self, "dust_size", "remove_size")
        within(0, 1, self, "threshold", "end", "low", "high", "boundary", "dust_affinity")
        if 0 < self.end < self.threshold:
            raise WrongSetting(f"end must be 0, or not below the threshold {self.threshold:g}; got {self.end:g}")
        above(0, self, "temperature")
        parsed(self, "fragments", check_fragments)
        parsed(self, "statistic", parse_statistic)

    def check_learned(self) -> None:
        """Refuses what means nothing beside a classifier, which looks at all affinities as they are."""
        usual = {"channels": (), "bias": (0.0, 0.0, 0.0), "temperature": 1.0, "statistic": "mean",
                 "ties": "canonical"}
        for name, value in usual.items():
            found = getattr(self, name)
            if found != value:
                raise WrongSetting(f"{name} must stay {list(value) if isinstance(value, tuple) else value} with "
                                   f"decode.learned, which looks at all affinities as they are; got {found}")


@dataclass(frozen=True)
class ConnectedDecode:
    kind: Literal["connected"] = "connected"  # connected components of the affinities
    # those along z, y, x, taken as nearest neighbours; empty: found by the offsets of the prediction
    channels: tuple[int, ...] = ()
    threshold: float = 0.5  # affinities above this connect two voxels
    thresholds: tuple[float, ...] = ()  # thresholds along z, y and x, instead of threshold
    # numbers added to the logits of the affinities along z, y and x
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    temperature: float = 1.0  # the logits are then divided by this
    remove_size: int = 0  # segments of fewer voxels are removed at the end

    def __post_init__(self) -> None:
        check_three(self.channels)
        at_least(0, self, "remove_size")
        within(0, 1, self, "threshold", "thresholds")
        above(0, self, "temperature")
        if len(self.thresholds) not in (0, 3):
            raise WrongSetting(f"thresholds must be three for kind = connected, along z, y and x; "
                               f"got {list(self.thresholds)}")


@dataclass(frozen=True)
class MutexDecode:
    kind: Literal["mutex"] = "mutex"  # mutex watershed of affinities of any length
    channels: tuple[int, ...] = ()  # channels to use; empty: all that have an offset
    strides: Triple = (1, 1, 1)  # use long affinities only at every so many voxels along z, y, x
    remove_size: int = 0  # segments of fewer voxels are removed at the end

    def __post_init__(self) -> None:
        at_least(0, self, "channels", "remove_size")
        at_least(1, self, "strides")


@dataclass(frozen=True)
class ComponentsDecode:
    kind: Literal["components"] = "components"  # connected components of the foreground
    channels: tuple[int, ...] = ()  # channels to use; empty: all
    threshold: float = 0.5  # values above this are foreground
    thresholds: tuple[float, ...] = ()  # one threshold per channel, instead of threshold
    connectivity: Literal[4, 8, 6, 18, 26] = 26  # neighbours of a voxel; 4 and 8 treat each section on its own
    seed_threshold: float = 0.0  # components above this grow over the foreground; 0: components of the foreground
    remove_size: int = 0  # segments of fewer voxels are removed at the end

    def __post_init__(self) -> None:
        at_least(0, self, "channels", "remove_size")
        within(0, 1, self, "threshold", "thresholds", "seed_threshold")
        least = max(self.thresholds or (self.threshold,))
        if 0 < self.seed_threshold < least:
            raise WrongSetting(f"seed_threshold must not be below the foreground's threshold {least}; "
                               f"got {self.seed_threshold}")


@dataclass(frozen=True)
class PolarityDecode:
    kind: Literal["polarity"] = "polarity"  # pre- and postsynaptic sides of synapses
    channels: tuple[int, ...] = ()  # channels to use; empty: all
    threshold: float = 0.5  # values above this count
    small: int = 128  # pre- and postsynaptic parts of fewer voxels are removed
    exclusive: bool = False  # the channels are classes, not independent masks
    remove_size: int = 0  # segments of fewer voxels are removed at the end

    def __post_init__(self) -> None:
        at_least(0, self, "channels", "small", "remove_size")
        within(0, 1, self, "threshold")


@dataclass(frozen=True)
class PartnersDecode:
    kind: Literal["partners"] = "partners"  # synapses whose postsynaptic voxels point back to their presynaptic side
    channels: tuple[int, ...] = ()  # the three of polarity and the vector's z, y, x; empty: all six
    threshold: float = 0.5  # values above this count
    small: int = 128  # pre- and postsynaptic parts of fewer voxels are removed
    exclusive: bool = False  # the channels are classes, not independent masks
    reach_nm: float = 200.0  # a vector that ends farther from every presynaptic middle is ignored

    def __post_init__(self) -> None:
        at_least(0, self, "channels", "small")
        within(0, 1, self, "threshold")
        above(0, self, "reach_nm")


@dataclass(frozen=True)
class Contour:
    binary: tuple[float, float] = (0.9, 0.85)  # limits for seeds and foreground, which lie above
    contour: tuple[float, float] = (0.8, 1.1)  # limits for seeds and foreground, which lie below
    distance: tuple[float, float] = (0.5, -0.5)  # limits for seeds and foreground, which lie above
    min_seed: int = 5  # seeds of fewer voxels are ignored

    def __post_init__(self) -> None:
        at_least(0, self, "min_seed")


@dataclass(frozen=True)
class ContourDecode:
    kind: Literal["contour"] = "contour"  # instances from foreground, contour and distance
    channels: tuple[int, ...] = ()  # channels to use; empty: all
    contour: Contour = Contour()  # thresholds of the three channels
    remove_size: int = 0  # segments of fewer voxels are removed at the end

    def __post_init__(self) -> None:
        at_least(0, self, "channels", "remove_size")


Decode = (NoDecode | AffinityDecode | ConnectedDecode | MutexDecode | ComponentsDecode | PolarityDecode
          | PartnersDecode | ContourDecode)
