"""[model]: which net, and its sizes; `name` says which of these tables it is. The nets: emcore/models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from emcore.config.checks import WrongSetting, at_least, within
from emcore.errors import InputError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class EncoderSizes:
    patch: Triple = (4, 16, 16)  # voxels of one token, z, y, x
    width: int = 192  # width of a token
    depth: int = 6  # transformer blocks
    heads: int = 6  # attention heads; the width must be a multiple of them

    def __post_init__(self) -> None:
        at_least(1, self, "patch", "width", "depth", "heads")
        if self.width % self.heads:
            raise WrongSetting(f"width must be a multiple of the number of heads, {self.heads}; got {self.width}")


@dataclass(frozen=True)
class LinearHeadSizes(EncoderSizes):
    dropout: float = 0.05  # dropout in attention and MLP

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "dropout")


@dataclass(frozen=True)
class LightUNETRSizes(LinearHeadSizes):
    dropout: float = 0.05  # dropout in attention, MLP and decoder
    features: int = 32  # channels of the decoder's finest level

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "features")


@dataclass(frozen=True)
class UNETRSizes(LightUNETRSizes):
    head: Literal["em", "plain"] = "em"  # "em": a branch for z and one for y and x; "plain": one convolution
    head_depth: int = 2  # shared blocks of the em head
    head_bias: tuple[float, ...] = (-0.2, 0.0, 0.0)  # bias of each channel's logit at the start, in the em head
    taps: tuple[int, ...] = ()  # blocks whose output the decoder takes; empty: depth/4, depth/2, 3 depth/4


@dataclass(frozen=True)
class RSUNetSizes:
    width: tuple[int, ...] = (18, 36, 48, 64, 80)  # channels of each level, the finest first
    fold: Triple = (1, 1, 1)  # voxels (z, y, x) folded into channels: the net sees farther at the same cost
    down: tuple[Triple, ...] = ()  # factor (z, y, x) between levels; empty: (1, 2, 2) everywhere
    kernel: int | tuple[Triple, ...] = 3  # one size for all axes and levels, or a triple for each level
    depth_2d: int = 0  # number of finest levels that use kernel_2d
    kernel_2d: Triple = (1, 3, 3)  # kernel of those levels
    norm: Literal["batch", "group", "instance", "none"] = "batch"  # normalisation before each activation
    groups: int = 8  # groups for norm = "group", lowered until the channels are a multiple
    act: Literal["relu", "leakyrelu", "prelu", "elu"] = "elu"  # activation before each convolution
    # enlarging along z: weighed as along y and x, or added up without weights, as PyTorch Connectomics' net does
    up: Literal["trilinear", "bilinear_yx"] = "trilinear"

    def __post_init__(self) -> None:
        at_least(1, self, "width", "fold", "groups")
        at_least(0, self, "depth_2d")
        if len(self.width) < 2:
            raise WrongSetting(f"width needs at least 2 levels; got {list(self.width)}")
        if len(self.down) not in (0, len(self.width) - 1):
            raise WrongSetting(f"down needs {len(self.width) - 1} factors for {len(self.width)} widths; "
                               f"got {len(self.down)}")

    @property
    def factors(self) -> tuple[Triple, ...]:
        return self.down or ((1, 2, 2),) * (len(self.width) - 1)


@dataclass(frozen=True)
class UNetV1Sizes:
    filters: tuple[int, int, int, int, int] = (32, 64, 128, 256, 256)  # channels of the five stages

    def __post_init__(self) -> None:
        at_least(1, self, "filters")


@dataclass(frozen=True)
class MedNeXtSizes:
    size: Literal["S", "B", "M", "L"] = "S"  # preset of the blocks and expansion of each stage
    width: int = 32  # channels of the finest level
    kernel: int = 3  # size of the depth-wise convolutions
    heads: tuple[tuple[str, int], ...] = ()  # name and channels of each head; empty: one head with out_channels
    head_blocks: int = 1  # blocks of each head

    def __post_init__(self) -> None:
        at_least(1, self, "width")
        at_least(0, self, "head_blocks")
        if self.kernel % 2 == 0:
            raise WrongSetting(f"kernel must be odd; got {self.kernel}")


@dataclass(frozen=True)
class Net:
    """What every net has, and what others may ask of it."""

    name: str = ""  # which of the nets it is
    in_channels: int = 1  # channels of the image

    net: ClassVar[str] = ""  # its class in emcore/models, file.Class; nothing where it predicts nothing
    gives_probabilities: ClassVar[bool] = False  # whether it ends in a sigmoid; else it gives logits

    def __post_init__(self) -> None:
        at_least(1, self, "in_channels")

    @property
    def multiple(self) -> Triple:
        """A patch must be a multiple of it along z, y and x."""
        return 1, 1, 1

    @property
    def heads(self) -> Mapping[str, int]:
        """Name and channels of its heads; empty where it has one alone."""
        return {}

    @property
    def layers(self) -> int:
        """How many layers its sizes ask for, at least: a file of weights has more tensors."""
        return 0


@dataclass(frozen=True)
class Predicting(Net):
    """What a net has that predicts channels."""

    out_channels: int = 1  # channels of the prediction

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "out_channels")


@dataclass(frozen=True)
class RSUNetModel(Predicting):
    name: Literal["rsunet"] = "rsunet"  # residual symmetric U-Net for anisotropic volumes
    deep_supervision: bool = False  # train extra heads on coarser levels
    checkpointing: bool = False  # recompute activations in the backward pass, for less memory and a third more time
    rsunet: RSUNetSizes = RSUNetSizes()  # sizes of this net

    net: ClassVar[str] = "rsunet.RSUNet"

    @property
    def multiple(self) -> Triple:
        z, y, x = self.rsunet.fold
        for factor in self.rsunet.factors:
            z, y, x = z * factor[0], y * factor[1], x * factor[2]
        return z, y, x

    @property
    def layers(self) -> int:
        return len(self.rsunet.width)


@dataclass(frozen=True)
class UNetV1Model(Predicting):
    name: Literal["unet_v1"] = "unet_v1"  # the synapse net of 2019, which gives probabilities
    unet_v1: UNetV1Sizes = UNetV1Sizes()  # sizes of this net

    net: ClassVar[str] = "unet_v1.UNetV1"
    gives_probabilities: ClassVar[bool] = True

    @property
    def multiple(self) -> Triple:
        return 2, 32, 32


@dataclass(frozen=True)
class Transformer(Net):
    """What the nets have that begin with the transformer encoder."""

    transformer: EncoderSizes = EncoderSizes()  # sizes of this net

    @property
    def multiple(self) -> Triple:
        return self.transformer.patch

    @property
    def layers(self) -> int:
        return self.transformer.depth


@dataclass(frozen=True)
class UNETRModel(Predicting, Transformer):
    name: Literal["unetr"] = "unetr"  # transformer encoder, convolutional decoder for anisotropic tokens
    transformer: UNETRSizes = UNETRSizes()  # sizes of this net

    net: ClassVar[str] = "unetr.UNETR"

    @property
    def layers(self) -> int:
        return self.transformer.depth + self.transformer.head_depth


@dataclass(frozen=True)
class LightUNETRModel(Predicting, Transformer):
    name: Literal["unetr_light"] = "unetr_light"  # transformer encoder, small convolutional decoder
    transformer: LightUNETRSizes = LightUNETRSizes()  # sizes of this net

    net: ClassVar[str] = "unetr.LightUNETR"


@dataclass(frozen=True)
class LinearHeadModel(Predicting, Transformer):
    name: Literal["linear_head"] = "linear_head"  # transformer encoder, one transposed convolution
    transformer: LinearHeadSizes = LinearHeadSizes()  # sizes of this net

    net: ClassVar[str] = "unetr.LinearHead"


@dataclass(frozen=True)
class MedNeXtModel(Predicting):
    name: Literal["mednext"] = "mednext"  # ConvNeXt-like U-Net
    deep_supervision: bool = False  # train extra heads on coarser levels
    checkpointing: bool = False  # recompute activations in the backward pass, for less memory and a third more time
    mednext: MedNeXtSizes = MedNeXtSizes()  # sizes of this net

    net: ClassVar[str] = "mednext.MedNeXt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deep_supervision and self.mednext.heads:
            raise WrongSetting("deep_supervision does not go with several heads in mednext.heads; leave one of them "
                               "out")

    @property
    def multiple(self) -> Triple:
        return 16, 16, 16

    @property
    def heads(self) -> Mapping[str, int]:
        return dict(self.mednext.heads)

    @property
    def layers(self) -> int:
        return max(1, len(self.mednext.heads)) * self.mednext.head_blocks


@dataclass(frozen=True)
class MaskedAutoencoderModel(Transformer):
    name: Literal["masked_autoencoder"] = "masked_autoencoder"  # net of [pretrain], which restores hidden patches


Model = (RSUNetModel | UNetV1Model | UNETRModel | LightUNETRModel | LinearHeadModel | MedNeXtModel
         | MaskedAutoencoderModel)


def check_patch(multiple: Sequence[int], patch: Sequence[int]) -> None:
    """Refuses a patch that the net's down-sampling does not divide, naming the two nearest sizes that fit."""
    if any(p % m or p < m for p, m in zip(patch, multiple)):
        lower = [max(m, p // m * m) for p, m in zip(patch, multiple)]
        upper = [-(-p // m) * m for p, m in zip(patch, multiple)]
        nearest = f"{lower} or {upper}" if lower != upper else f"{upper}"
        raise InputError(f"a patch of {list(patch)} does not fit this net, which needs multiples of {list(multiple)}; "
                         f"the nearest that fit are {nearest}")
