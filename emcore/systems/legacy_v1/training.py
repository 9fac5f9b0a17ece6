"""train: one loop over iterations, counted from 0, that writes volume_<iteration>.pth, a text log and events.

The loop is its own, not that of train.py: a line a step, files named by iteration, statistics that are set before every
step and a first window of eleven losses would each be a hook there that nothing else needs.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from emcore.data.sampler import Sampler, load, sample_numbers
from emcore.data.sources import open_sources
from emcore.data.targets import make_targets
from emcore.engine import ranks
from emcore.engine.memory import keep_pages
from emcore.engine.optimizer import build_optimizer, set_rate
from emcore.engine.schedule import Plateau
from emcore.errors import InputError
from emcore.files import append, reported
from emcore.losses import LossPlan
from emcore.models.unet_v1 import UNetV1
from emcore.settings.model import UNetV1Model, check_patch
from emcore.systems.legacy_v1 import recipe
from emcore.systems.legacy_v1.flags import CHANNELS, NUMBERS
from emcore.systems.legacy_v1.samples import augmented
from emcore.systems.legacy_v1.weights import load_net, save_net, update_momentum

WINDOW = 10  # iterations whose mean loss the schedule and the console see


def train(flags: argparse.Namespace, arguments: Sequence[str]) -> int:
    """The exit code; with several GPUs the command starts itself once for each."""
    wanted = min(flags.num_gpu, torch.cuda.device_count())
    if wanted > 1 and not torch.distributed.is_torchelastic_launched():
        return subprocess.call([sys.executable, "-m", "torch.distributed.run", "--standalone",
                                f"--nproc-per-node={wanted}", "-m", "emcore.systems.legacy_v1", *arguments])
    here = ranks.start()
    keep_pages(here.device.type)
    try:
        return run(flags, here)
    finally:
        ranks.stop()


def task_of(channels: int) -> str:
    """In words, which task has a net of so many channels; nothing where none has."""
    return "".join(f", as a net of --task {NUMBERS[task]} ({task})" for task, count in CHANNELS.items()
                   if count == channels)


def build(flags: argparse.Namespace) -> tuple[UNetV1, float]:
    """The net, fresh or from -pm, and the count behind its batch statistics."""
    outside = flags.out_channel or CHANNELS[flags.task or "neuron"]
    if not flags.load_model:
        return UNetV1(UNetV1Model(out_channels=outside)), 1.0
    net, count = load_net(flags.pre_model)
    found = net.fconv[0][1].out_channels
    if found != outside:
        raise InputError(f"{flags.pre_model} has {found} output channels{task_of(found)}; --task and --out-channel say "
                         f"{outside}")
    return net, count


def run(flags: argparse.Namespace, here: ranks.Ranks) -> int:
    say = print if here.leads else (lambda *words: None)
    output = Path(flags.output)
    say("0. initial setup")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into -o {output}: {error.strerror}") from None
    say("output path:", output)
    say("device:", here.device)
    if flags.num_gpu > here.world:
        say(f"-g {flags.num_gpu}: this machine gives {here.world if here.device.type == 'cuda' else 'no GPU'}")

    say("1. setup data")
    torch.manual_seed(flags.seed)
    net, count = build(flags)
    check_patch(net.multiple, flags.patch)
    if flags.batch_size // here.world * math.prod(n // m for n, m in zip(flags.patch, net.multiple)) < 2:
        raise InputError(f"batch norm learns nothing from one patch of {list(flags.patch)}, the smallest there is: "
                         "raise -b, or one side of -mi")
    settings = recipe.training(flags)
    train, data = settings.train, settings.data
    sources = open_sources(data, "train")
    for source in sources:
        say("volume shape:", source.size, "label shape:", source.arrays["label"].shape)
        if any(n + 2 * p < s for n, p, s in zip(source.size, data.pad, data.patch)):
            say(f"{source.name} is smaller than a sample and is mirrored beyond its edges")
    say("sample size:", data.patch)
    say("batch size:", train.batch)
    sampler = Sampler(sources, data, settings.seed)
    numbers = sample_numbers(0, train.steps, train.batch, 1, here.rank, here.world)
    batches = iter(load(sampler, numbers, data.workers, pin=here.device.type == "cuda"))

    say("2.0 setup model")
    say(type(net).__name__)
    say(f"2.1 weights of {flags.pre_model}" if flags.load_model else "2.1 new weights")
    plan = LossPlan(settings.loss)
    net.to(here.device).train()
    module = net
    if here.world > 1:
        if here.device.type == "cuda":  # the statistics are those of the whole batch
            net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
        module = DistributedDataParallel(net, [here.device] if here.device.type == "cuda" else None)

    say("3. setup optimizer")
    optimizer = build_optimizer(net, train)
    plateau = Plateau(train.schedule, train.optimizer.lr)
    log = Log(output) if here.leads else None

    say("4. start training")
    total, values = 0.0, 0
    for iteration in range(train.steps):
        batch = {name: tensor.to(here.device, non_blocking=True) for name, tensor in next(batches).items()}
        image, label = augmented(batch, settings, flags.patch)
        target, valid = make_targets(label, settings.target)
        count = update_momentum(net, count)
        output_values = module(image)
        loss = plan(output_values, target, valid).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = float(here.sum(loss.detach())) / here.world
        total, values = total + value, values + 1
        if log:
            log.line(f"[Volume {iteration}] train_loss={value:.4f} lr={plateau.lr:.5f}")
        if iteration > 0 and iteration % WINDOW == 0:  # the first window has one value more
            mean, total, values = total / values, 0.0, 0
            say(f"[Iteration {iteration}] train_loss={mean:.4f} lr={plateau.lr:.6f}")
            if log:
                log.events(iteration, mean, {"Input": image, "Label": target, "Output": output_values})
            plateau.update(mean)
            set_rate(optimizer, plateau.lr)
        if here.leads and (iteration % flags.iteration_save == 0 or iteration + 1 == train.steps):
            save_net(net, output / f"volume_{iteration}.pth", count)
    here.wait()
    say("5. finish training")
    if log:
        log.close()
    return 0


class Log:
    """log_approx_<time>.txt in the output folder, and TensorBoard's events in runs/ where it is installed."""

    def __init__(self, output: Path):
        name = f"log_approx_{datetime.now():%Y-%m-%d_%H:%M:%S}"
        with reported(output / f"{name}.txt"):
            self.file = open(output / f"{name}.txt", "ab", buffering=0)  # noqa: SIM115 (closed by close())
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(Path("runs") / str(output).strip("/") / name))

    def line(self, text: str) -> None:
        append(self.file, f"{text}\n".encode())

    def events(self, iteration: int, loss: float, pictures: dict[str, Tensor]) -> None:
        if self.board is None:
            return
        self.board.add_scalar("Loss", loss, iteration)
        for name, tensor in pictures.items():
            row = torch.cat(list(tensor[0, 0, :8].detach().float()), 1)  # the first 8 sections, side by side
            row = (row - row.min()) / (row.max() - row.min()).clamp_min(1e-5)
            self.board.add_image(name, row.cpu().numpy(), iteration, dataformats="HW")

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
