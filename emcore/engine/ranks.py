"""The processes of a run: one alone, or several under torchrun, on GPUs (nccl) or CPUs (gloo)."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from emcore.engine.arithmetic.machine import check_device
from emcore.engine.arithmetic.net import has_mps
from emcore.errors import InputError

BEAT = 2.0  # seconds between two signs of life of the lead while it decides
SILENCE = 60.0  # seconds without one after which the others give up
ARRIVAL = 600.0  # seconds in which all must have come
LINGER = 1.0  # seconds in which the others hear why the lead ends, as its process may hold the meeting point


@dataclass(frozen=True)
class Ranks:
    rank: int  # this process; 0 leads
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
    check_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device = cuda, but this torch ({torch.__version__}) finds no usable GPU")
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if device == "mps" and not (has_mps() and alone):
        why = "it serves one process" if has_mps() else f"this torch ({torch.__version__}) finds none"
        raise InputError(f"device = mps is the GPU of an Apple processor, and {why}: set device=cpu")
    use_gpu = torch.cuda.is_available() and device in ("auto", "cuda")
    if use_gpu and local >= torch.cuda.device_count():
        raise InputError(f"rank {rank} wants GPU {local}, but this machine has {torch.cuda.device_count()}: start "
                         f"torchrun with --nproc-per-node={torch.cuda.device_count()}, or set device=cpu")
    use_mps = not use_gpu and device in ("auto", "mps") and alone and has_mps()
    chosen = torch.device("cuda", local) if use_gpu else torch.device("mps" if use_mps else "cpu")
    if use_gpu:
        torch.cuda.set_device(chosen)
    return chosen


def start(device: str = "auto", minutes: float = 10.0) -> Ranks:
    """Joins the other processes of torchrun, if any, and takes this one's device."""
    chosen = choose_device(device)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1 and not distributed.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=meeting_point(), rank=rank, world_size=world,
                                       timeout=timedelta(minutes=minutes))
    return Ranks(rank, world, chosen)


def stop() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


# ---- what the lead decides before the ranks have a device in common


@cache
def meeting_point() -> distributed.Store:
    """Where the processes of this start exchange words; torchrun keeps it apart from that of every other start."""
    try:
        return next(rendezvous("env://", timeout=timedelta(seconds=ARRIVAL)))[0]
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the {os.environ.get('WORLD_SIZE')} processes of this run cannot meet "
                         f"({str(error).splitlines()[0]}): start them by torchrun") from None


def from_lead(decide: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """What decide() returns on the rank that leads, on every rank: the others have None and wait while that one lives.
    """
    store = meeting_point()
    if decide is None:
        return _hear(store)
    with _beating(store):
        try:
            found = decide()
        except BaseException as error:
            store.set("decided", json.dumps({"failed": str(error) or type(error).__name__}))
            time.sleep(LINGER)
            raise
    store.set("decided", json.dumps({"found": found}))
    return found


def _hear(store: distributed.Store) -> dict[str, Any]:
    beats, since, patience = 0, time.monotonic(), ARRIVAL
    try:
        while not store.check(["decided"]):
            if (now := store.add("beats", 0)) != beats:
                beats, since, patience = now, time.monotonic(), SILENCE
            if time.monotonic() - since > patience:
                raise InputError(f"rank 0, which chooses the arithmetic of this run, has given no sign for "
                                 f"{patience:.0f} s: see what it printed, and start all ranks again")
            time.sleep(0.1)
        told = json.loads(store.get("decided"))
    except RuntimeError:  # its process holds the meeting point
        raise InputError("rank 0, which chooses the arithmetic of this run, has ended: see what it printed") from None
    if "failed" in told:
        raise InputError(f"rank 0 has stopped: {told['failed']}")
    return told["found"]


@contextmanager
def _beating(store: distributed.Store) -> Iterator[None]:
    """Tells the other ranks now and then that this one is at work."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            store.add("beats", 1)

    store.add("beats", 1)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
