"""[data]: which volumes, which patches of them, and how intensities are scaled."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import WrongSetting, above, at_least, within
from emcore.errors import InputError
from emcore.files import check_name
from emcore.volumes.address import has_secrets, is_address, name_of, without_secrets

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class VolumeFiles:
    # path, path:dataset or address (docs/volumes.md); without labels also a pattern with * or **, one volume each file
    image: str
    label: str | None = None  # labels of the same place; none for pretraining and prediction
    mask: str | None = None  # voxels that are not 0 may be used; without a mask all may be
    skeleton: str | None = None  # volume of the labels' skeletons, each with its label, for skeleton_distance
    # labels that a net found here: those that touch no true label are background that weighs data.false_weight
    found: str | None = None
    name: str | None = None  # name in logs and results; by default that of the file
    weight: float = 1.0  # factor of the chance that this volume is chosen for a patch
    box: tuple[int, int, int, int, int, int] | None = None  # z0 z1 y0 y1 x0 x1, voxels of the image that may be used

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name, "the name of a volume")
        for reference in (self.image, self.label, self.mask, self.skeleton, self.found):
            if is_address(reference) and has_secrets(reference):
                raise WrongSetting(f"the address {without_secrets(reference)} holds a password or what stands behind a "
                                   "question mark, which would be written into every record; use an address without")
        at_least(0, self, "weight")
        if self.box is not None and not all(0 <= low < high for low, high in zip(self.box[::2], self.box[1::2])):
            raise WrongSetting(f"box must be z0 z1 y0 y1 x0 x1, each end above its start; got {list(self.box)}")


@dataclass(frozen=True)
class Data:
    folder: str = ""  # folder that relative paths start from
    train: tuple[VolumeFiles, ...] = ()  # volumes to learn from
    validation: tuple[VolumeFiles, ...] = ()  # volumes to validate on
    test: tuple[VolumeFiles, ...] = ()  # volumes to predict and score
    patch: Triple = (18, 256, 256)  # z, y, x, voxels of one sample
    pad: Triple = (0, 0, 0)  # voxels along z, y, x by which a volume is extended at each side, by mirroring it
    resolution: tuple[float, float, float] | None = None  # nm, z y x, where the files do not say it
    split_axis: int = 0  # axis along which the two parts below are cut: 0 z, 1 y, 2 x
    train_part: tuple[float, float] = (0.0, 1.0)  # part of every training volume that is used, along split_axis
    validation_part: tuple[float, float] = (0.0, 1.0)  # part of every validation volume that is used, along split_axis
    # chance of a volume: its weight, weight * voxels, or weight * patch positions
    choose: Literal["uniform", "size", "positions"] = "uniform"
    # keep one copy per node in shared memory, on local disk, or read the files directly
    storage: Literal["memory", "mapped", "lazy"] = "memory"
    remote_cache: float = 1.0  # GiB of decompressed chunks of remote volumes that each process keeps in memory
    remote_disk: float = 0.0  # GiB of such chunks that a node keeps on its disk during the run, for "lazy"
    background: tuple[int, ...] = ()  # labels that mean background, besides 0
    ignore: tuple[int, ...] = ()  # labels that mean unknown: losses and scores skip these voxels
    # weight in the loss of what an earlier net invented (`found` of a volume); dice weighs all voxels alike
    false_weight: float = 5.0
    # intensities to 0..1, to mean 0 and deviation 1, divided by `divide`, or as they are
    normalise: Literal["range", "score", "divide", "none"] = "range"
    # percentiles, mean and deviation are those of the patch, or of the volume
    normalise_by: Literal["patch", "volume"] = "patch"
    # for normalise = range: these percentiles become 0 and 1, and what lies beyond is cut off
    percentiles: tuple[float, float] = (0.0, 100.0)
    divide: float = 255.0  # for normalise = divide: the number to divide by
    reject_below: int = 0  # a patch with fewer labelled voxels than this is rejected and drawn again
    reject_probability: float = 0.95  # chance that such a patch is rejected; otherwise it is kept
    reject_tries: int = 50  # number of draws after which the last patch is kept in any case
    workers: int = 2  # threads of each rank that read patches (processes if storage is "lazy"); 0: read between steps
    prefetch: int = 4  # batches that each worker prepares ahead

    def __post_init__(self) -> None:
        at_least(1, self, "patch", "reject_tries", "prefetch")
        at_least(0, self, "remote_cache", "remote_disk", "pad", "reject_below", "workers")
        above(0, self, "resolution", "divide", "false_weight")
        within(0, 1, self, "train_part", "validation_part", "reject_probability")
        within(0, 100, self, "percentiles")
        within(0, 2, self, "split_axis")
        for name in ("train_part", "validation_part", "percentiles"):
            low, high = getattr(self, name)
            if low >= high:
                raise WrongSetting(f"{name} must go from a smaller number to a larger one; got {[low, high]}")


def result_name(data: Data, number: int) -> str:
    """How a test volume is called in results; a single one is test_im, as the published recipes call it."""
    volume = data.test[number]
    return volume.name or ("test_im" if len(data.test) == 1 else name_of(volume.image))


def result_names(data: Data) -> list[str]:
    """The names of all test volumes in results; two of one name would be one file."""
    names = [result_name(data, number) for number in range(len(data.test))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two volumes of data.test are called {twice}, so their results would be one file: set `name` "
                         "of one of them")
    return names
