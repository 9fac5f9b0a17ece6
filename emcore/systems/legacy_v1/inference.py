"""test: every volume mirrored by half a patch, predicted in patches that overlap by half, blended by a Gaussian."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from emcore.data.sources import open_source
from emcore.engine import ranks
from emcore.engine.memory import keep_pages
from emcore.errors import InputError
from emcore.prediction.streaming import Job, as_given
from emcore.settings.data import VolumeFiles
from emcore.settings.model import check_patch
from emcore.settings.target import affinity_offsets
from emcore.systems.legacy_v1 import recipe
from emcore.systems.legacy_v1.flags import CHANNELS
from emcore.systems.legacy_v1.training import build, task_of
from emcore.systems.legacy_v1.weights import load_net
from emcore.volumes import create_volume, open_volume

Triple = tuple[int, int, int]


def positions(length: int, patch: int, stride: int) -> list[int]:
    """First voxels of the patches along an axis, 1 + ceil((length - patch) / stride); the last ends with the axis."""
    if length <= patch:
        return [0]
    count = 1 - (patch - length) // stride
    return [min(number * stride, length - patch) for number in range(count)]


def prediction(net: nn.Module, image: str, flags: argparse.Namespace) -> Job:
    """The prediction of one volume, piece by piece; the net gives probabilities."""
    settings, stride = recipe.prediction(flags), flags.stride or tuple(max(1, n // 2) for n in flags.patch)
    infer, data = settings.infer, settings.data
    source = open_source(data, VolumeFiles(image), "test")
    job = Job(net, source, infer, data, affinity_offsets(settings.target), as_given(net, source, infer, "fp32"))
    job.starts = [positions(n, w, s) for n, w, s in zip(job.padded, flags.patch, stride)]
    return job


def _task(flags: argparse.Namespace, channels: int) -> str | None:
    """The task of a file with so many channels: what --task says, if that can be, or what the file is of."""
    found = next((task for task, count in CHANNELS.items() if count == channels), None)
    if flags.task is None:
        print(f"without --task: {flags.pre_model} has {channels} output channels{task_of(channels)}")
    elif found not in (None, flags.task) and flags.out_channel is None:
        raise InputError(f"{flags.pre_model} has {channels} output channels{task_of(channels)}; --task says "
                         f"{flags.task}")
    return flags.task or found


def test(flags: argparse.Namespace) -> int:
    device = ranks.choose_device()
    keep_pages(device.type)
    print("output path:", flags.output)
    print("device:", device)
    if flags.load_model:
        net, _ = load_net(flags.pre_model)
        found = net.fconv[0][1].out_channels
        if flags.out_channel not in (None, found):
            raise InputError(f"{flags.pre_model} has {found} output channels{task_of(found)}; --out-channel says "
                             f"{flags.out_channel}")
        flags.task = _task(flags, found)
    else:
        net, _ = build(flags)
        flags.task = flags.task or "neuron"
        print("without -lm True -pm FILE the weights are random, and so is what is predicted")
    check_patch(net.multiple, flags.patch)
    net.to(device).eval()
    gpus = min(flags.num_gpu, torch.cuda.device_count())
    runner = nn.DataParallel(net, list(range(gpus))) if gpus > 1 else net
    folder = Path(flags.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into -o {folder}: {error.strerror}") from None
    start = time.monotonic()
    for number, image in enumerate(flags.images):
        job = prediction(runner, f"{image}:main", flags)
        target = folder / f"volume_{number}.h5"
        shape = (len(job.channels), *job.shape)
        resolution = open_volume(f"{image}:main", kind="image").resolution
        if resolution is None:
            print(f"{image} does not say its resolution, so neither does {target}: scores in nm need the option "
                  "--resolution Z Y X")
        place = (resolution, job.source.offset)
        with create_volume(f"{target}:main", shape, "uint8", *place, compression="gzip") as out:
            for low, high, values in job.pieces(job.whole):
                out[:, low:high] = (values() * np.float32(255)).astype(np.uint8)  # cut off, not rounded
                print(f"volume_id: {number}, sections {low} to {high - 1}", flush=True)
        print("Output shape:", shape)
    print(f"prediction time: {time.monotonic() - start:.1f} s")
    return 0
