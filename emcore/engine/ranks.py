"""The processes of a run: one alone, or several under torchrun, on GPUs (nccl) or CPUs (gloo)."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from emcore.errors import InputError


@dataclass(frozen=True)
class Ranks:
    rank: int  # of this process, 0 leads
    world: int  # processes in all
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Element-wise maximum over all ranks: how every decision to stop or save is made together."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier()

    def share_buffers(self, net: nn.Module) -> None:
        """Gives every rank the buffers of rank 0 (batch norm statistics differ between ranks)."""
        if self.world > 1:
            for buffer in net.buffers():
                distributed.broadcast(buffer, 0)


def choose_device(device: str = "auto") -> torch.device:
    """The device of this process; says what is impossible."""
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device = cuda, but this torch ({torch.__version__}) finds no usable GPU")
    use_gpu = torch.cuda.is_available() and device != "cpu"
    if use_gpu and local >= torch.cuda.device_count():
        raise InputError(f"rank {rank} wants GPU {local}, but this machine has {torch.cuda.device_count()}: start "
                         f"torchrun with --nproc-per-node={torch.cuda.device_count()}, or set device=cpu")
    chosen = torch.device("cuda", local) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(chosen)
    return chosen


def start(device: str = "auto", minutes: float = 10.0) -> Ranks:
    """Joins the other processes of torchrun, if any, and takes this one's device."""
    chosen = choose_device(device)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1 and not distributed.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(minutes=minutes))
    return Ranks(rank, world, chosen)


def stop() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
