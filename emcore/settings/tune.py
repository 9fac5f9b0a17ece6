"""[tune]: the space of [decode] settings that evaluate.py --tune searches."""

from dataclasses import dataclass, field
from typing import Any, Literal

from emcore.config.checks import at_least


def listed(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


@dataclass(frozen=True)
class Space:
    """Each a value, a list of values, or {min, max} with `step` or `log = true`; what is left out stays as in [decode].

    Those from boundary on act after the cut: they need --tune-random.
    """

    # merge statistics
    statistic: Any = listed("aff85_his256", "aff75_his256", "aff50_his256", "aff25_his256", "aff15_his256")
    low: Any = listed(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # affinities at or below join nothing
    high: Any = listed(0.7, 0.8, 0.9, 1.0)  # affinities at or above always join
    # "every": all thresholds that the tree can tell apart; {min, max}: every one between; a list; or {min, max, step}
    threshold: Any = "every"
    bias: Any = None  # a list of triples, added to the logits of the affinities along z, y, x
    temperature: Any = None  # numbers that then divide the logits
    fragments: Any = None  # names of decode.fragments
    boundary: Any = None  # mean y and x affinity below which voxels are cleared
    dust_size: Any = None  # a smaller segment, in voxels, joins its best neighbour
    dust_affinity: Any = None  # affinity that the neighbour needs
    remove_size: Any = None  # what is left of fewer voxels is removed
    link_iou: Any = None  # decode.link.iou
    link_one_sided: Any = None  # decode.link.one_sided
    link_affinity: Any = None  # decode.link.affinity


@dataclass(frozen=True)
class Tune:
    volumes: Literal["test", "validation"] = "test"  # the volumes of [data] that are scored; they need a label
    objective: str = "adapted_rand"  # what is made small, as a mean over the volumes; see docs/scores.md
    confirm: int = 3  # best points that are decoded for good, with all that [decode] does after the cut
    processes: int = 1  # side by side, each with its share of the cores and its own copy of a volume
    space: Space = Space()  # what is tried

    def __post_init__(self) -> None:
        at_least(1, self, "confirm", "processes")
