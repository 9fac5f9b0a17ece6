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
    low: Any = listed(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # affinities at or below this never join voxels
    high: Any = listed(0.7, 0.8, 0.9, 1.0)  # affinities at or above this always join voxels
    # "every": all thresholds that the tree can tell apart; {min, max}: every one between; a list; or {min, max, step}
    threshold: Any = "every"
    bias: Any = None  # triples that are added to the logits of the affinities along z, y, x
    temperature: Any = None  # numbers by which the logits are then divided
    fragments: Any = None  # names of decode.fragments
    boundary: Any = None  # voxels whose mean y/x affinity is below this become background
    dust_size: Any = None  # a segment of fewer voxels joins the neighbour with the best affinity
    dust_affinity: Any = None  # affinity that is required for that
    remove_size: Any = None  # segments of fewer voxels are removed at the end
    link_iou: Any = None  # decode.link.iou
    link_one_sided: Any = None  # decode.link.one_sided
    link_affinity: Any = None  # decode.link.affinity


@dataclass(frozen=True)
class Tune:
    volumes: Literal["test", "validation"] = "test"  # the volumes of [data] that are scored; they need a label
    objective: str = "adapted_rand"  # score to minimise, as a mean over the volumes; see docs/scores.md
    confirm: int = 3  # number of best points that are decoded in full and scored again
    processes: int = 1  # number of processes; each has its share of the cores and its own volume
    space: Space = Space()  # values to try

    def __post_init__(self) -> None:
        at_least(1, self, "confirm", "processes")
