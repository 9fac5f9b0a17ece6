"""[model]: which net, and the sizes of each."""

from dataclasses import dataclass
from typing import Literal

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class RSUNetSizes:
    width: tuple[int, ...] = (18, 36, 48, 64, 80)  # channels of each level, finest first
    fold: Triple = (1, 1, 1)  # z, y, x voxels that enter and leave as channels of one: sees farther at the same cost
    down: tuple[Triple, ...] = ()  # z, y, x factor between levels; empty means (1, 2, 2) everywhere
    kernel: int | tuple[Triple, ...] = 3  # one size for all axes and levels, or one triple a level
    depth_2d: int = 0  # how many of the finest levels use kernel_2d
    kernel_2d: Triple = (1, 3, 3)  # their kernel
    norm: Literal["batch", "group", "instance", "none"] = "batch"  # normalisation before each activation
    groups: int = 8  # of norm = "group"; lowered until they divide the channels
    act: Literal["relu", "leakyrelu", "prelu", "elu"] = "elu"  # activation before each convolution
    # enlarging along z: weighed as along y and x, or added up without weights, as PyTorch Connectomics' net does
    up: Literal["trilinear", "bilinear_yx"] = "trilinear"


@dataclass(frozen=True)
class UNetV1Sizes:
    filters: tuple[int, int, int, int, int] = (32, 64, 128, 256, 256)  # channels of the five stages


@dataclass(frozen=True)
class TransformerSizes:
    patch: Triple = (4, 16, 16)  # voxels of one token, z, y, x
    width: int = 192  # numbers of one token
    depth: int = 6  # transformer blocks
    heads: int = 6  # attention heads; divide the width
    dropout: float = 0.05  # in attention, MLP and decoder
    features: int = 32  # channels of the decoder's finest level
    head: Literal["em", "plain"] = "em"  # separate z and in-plane branches, or one convolution (unetr only)
    head_depth: int = 2  # shared blocks of the em head
    head_bias: tuple[float, ...] = (-0.2, 0.0, 0.0)  # first logit bias of each channel of the em head
    taps: tuple[int, ...] = ()  # blocks that feed the decoder; empty means depth/4, depth/2, 3 depth/4


@dataclass(frozen=True)
class MedNeXtSizes:
    size: Literal["S", "B", "M", "L"] = "S"  # blocks and widening of each stage
    width: int = 32  # channels of the finest level
    kernel: int = 3  # of the depth-wise convolutions
    heads: tuple[tuple[str, int], ...] = ()  # name and channels of several heads; empty means one of out_channels
    head_blocks: int = 1  # blocks of each head


@dataclass(frozen=True)
class Model:
    name: Literal["rsunet", "unet_v1", "unetr", "unetr_light", "linear_head", "mednext"] = "rsunet"  # the net
    in_channels: int = 1  # of the image
    out_channels: int = 1  # of the prediction
    deep_supervision: bool = False  # extra heads on coarser levels (rsunet, mednext)
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time
    rsunet: RSUNetSizes = RSUNetSizes()  # of name = "rsunet"
    unet_v1: UNetV1Sizes = UNetV1Sizes()  # of name = "unet_v1"
    transformer: TransformerSizes = TransformerSizes()  # of unetr, unetr_light, linear_head and of masked pretraining
    mednext: MedNeXtSizes = MedNeXtSizes()  # of name = "mednext"
