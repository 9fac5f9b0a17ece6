"""The run folder: log.csv that a resumed run continues, the environment, previews, TensorBoard where installed."""

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from emcore import __version__
from emcore.errors import InputError
from emcore.files import append, csv_text, reported, write_text
from emcore.png import write_png


class Log:
    """Rows of numbers by step. Rows after the step a run resumes from are dropped, so the file is as if never killed.

    Only what the run computes stands in log.csv; how fast it was stands in speed.csv.
    """

    def __init__(self, folder: Path, columns: Sequence[str], step: int):
        self.folder, self.columns = folder, ("step", *columns)
        self._resume(folder / "log.csv", self.columns, step)
        self.file = open(folder / "log.csv", "ab", buffering=0)  # noqa: SIM115 (closed by close())
        self.board = self._tensorboard()

    @staticmethod
    def _resume(path: Path, columns: Sequence[str], step: int) -> None:
        rows = []
        if path.exists():
            with open(path, newline="") as file:
                reader = csv.reader(line for line in file if line.endswith("\n"))  # a killed writer may have torn one
                head = next(reader, None)
                # a run begun by an older version may lack columns that there are now
                if head is not None and not set(head) <= set(columns) and step > 0:
                    raise InputError(f"{path} has the columns {', '.join(head)}; this run writes {', '.join(columns)}: "
                                     "use another run name")
                found = [dict(zip(head or (), row)) for row in reader if len(row) == len(head or ())]
                rows = [[row.get(name, "") for name in columns] for row in found
                        if row.get("step", "").isdigit() and int(row["step"]) <= step]
        write_text(path, csv_text([columns, *(rows if step > 0 else [])]))

    def _tensorboard(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        with reported(self.folder / "tensorboard"):
            return SummaryWriter(str(self.folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; numbers are written so that reading them gives the same bits."""
        numbers = (repr(float(values[name])) if name in values else "" for name in self.columns[1:])
        append(self.file, csv_text([[step, *numbers]]).encode())
        if self.board is not None:
            with reported(self.folder / "tensorboard"):
                for name, value in values.items():
                    self.board.add_scalar(name, value, step)

    def picture(self, step: int, image: np.ndarray) -> None:
        """A preview: uint8 (y, x, 3)."""
        folder = self.folder / "previews"
        with reported(folder):
            folder.mkdir(exist_ok=True)
        write_png(folder / f"step_{step:09d}.png", image)
        if self.board is not None:
            with reported(self.folder / "tensorboard"):
                self.board.add_image("preview", image, step, dataformats="HWC")

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            with reported(self.folder / "tensorboard"):
                self.board.close()


def write_environment(folder: Path, device: torch.device) -> None:
    """environment.json: versions, device, code revision, command line."""
    found = {
        "emcore": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "command": sys.argv,
    }
    write_text(folder / "environment.json", json.dumps(found, indent=1) + "\n")


def _revision() -> str:
    """The git revision of this checkout, with + where files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
