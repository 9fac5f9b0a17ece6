"""[evaluate]: which scores."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Evaluate:
    # see docs/settings.md
    scores: tuple[Literal["voi", "rand", "curve", "jaccard", "clefts", "instances", "synapses"], ...] = ("voi", "rand")
    convention: Literal["cremi", "snemi3d", "skimage", "funlib", "isbi"] = "cremi"  # of rand
    border_nm: float = 0.0  # voxels this near to a border of the truth, in their section, do not count; 0 counts all
    threshold: float = 0.5  # of predictions for jaccard and clefts
    cleft_nm: float = 200.0  # farther than this a cleft voxel is false
