"""The classifier of contacts: a few small nets over the same features, whose mean says how likely a border is.

It is trained and applied in numpy, and its file is plain JSON with a digest, so that nothing in it is ever executed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from emcore.decode.features import feature_names
from emcore.errors import InputError
from emcore.files import reported, write_text
from emcore.reading import read_text
from emcore.segment.contacts import MOST_GROUPS

FORMAT = 1
MOST_BYTES = 8 << 20  # A larger file is refused; the usual one has 0.2 MB.
NETS, HIDDEN = 5, 32
MOST_NETS, MOST_HIDDEN = 64, 1024  # A file with more is refused.
FARTHEST = 4.0  # deviations from the mean, to which features are cut
LEVELS = 1 << 16  # a probability is a whole number of 16 bits
_EPOCHS, _STEPS, _BATCH, _RATE, _DECAY = 30, 2000, 256, 3e-3, 3e-3  # at most so many steps
_CHUNK = 1 << 16  # edges whose features are in work at a time


@dataclass(frozen=True)
class ContactNet:
    """Nets of one hidden layer, and the predictions and fragments that they were trained on; see `check`."""

    steps: tuple[tuple[int, int, int], ...]  # z, y, x of every group, as step_groups gives them
    resolution: tuple[float, float, float]  # nm, z y x
    fragments: str  # decode.fragments
    made_of: tuple[str, ...]  # what it learned from, for a reader
    mean: np.ndarray  # float32 (features,)
    deviation: np.ndarray  # float32 (features,)
    weights: np.ndarray  # float32 (nets, features, hidden)
    biases: np.ndarray  # float32 (nets, hidden)
    out_weights: np.ndarray  # float32 (nets, hidden)
    out_biases: np.ndarray  # float32 (nets,)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """The probability of a border for every row of features (edges, features), uint16 in units of 2**-16."""
        found = [self._probabilities(features[first:first + _CHUNK]) for first in range(0, len(features), _CHUNK)]
        return np.concatenate([np.empty(0, np.uint16), *found])

    def _probabilities(self, features: np.ndarray) -> np.ndarray:
        scaled = _scaled(features, self.mean, self.deviation)
        total = np.zeros(len(features))
        for number in range(len(self.weights)):  # einsum adds in one order, whatever the threads of a library
            hidden = np.einsum("ef,fh->eh", scaled, self.weights[number].astype(np.float64)) + self.biases[number]
            logit = np.einsum("eh,h->e", np.maximum(hidden, 0), self.out_weights[number].astype(np.float64))
            total += 1 / (1 + np.exp(-np.clip(logit + self.out_biases[number], -50, 50)))
        return np.minimum(np.rint(total / len(self.weights) * LEVELS), LEVELS - 1).astype(np.uint16)

    def check(self, name: str, steps: Sequence[Sequence[int]], resolution: Sequence[float], fragments: str) -> None:
        """Refuses a prediction with other steps or voxels, and other fragments, than this was trained on."""
        for what, known, found in (("affinities of the steps", [list(step) for step in self.steps],
                                    [list(step) for step in steps]),
                                   ("decode.fragments", self.fragments, fragments)):
            if known != found:
                raise InputError(f"the classifier of decode.learned.file was trained on {what} {known}, but those of "
                                 f"{name} are {found}: train one for them by python -m emcore learn-contacts")
        if not np.allclose(self.resolution, resolution, rtol=0.02):
            raise InputError(f"the classifier of decode.learned.file was trained on voxels of {list(self.resolution)} "
                             f"nm, but those of {name} have {list(resolution)}: train one for them by python -m "
                             "emcore learn-contacts")


def train_net(features: np.ndarray, borders: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a ContactNet: features float64 (edges, features), borders bool (edges,), True where a cut is.

    Weights are drawn and edges shuffled by the seed alone. The loss is the cross entropy with a small weight decay,
    lowered by Adam along half a cosine.
    """
    mean, deviation = features.mean(0).astype(np.float32), (features.std(0) + 1e-6).astype(np.float32)
    scaled, wanted = _scaled(features, mean, deviation).astype(np.float32), borders.astype(np.float32)
    nets = [_train_one(scaled, wanted, np.random.default_rng([seed, number])) for number in range(NETS)]
    weights, biases, out_weights, out_biases = (np.stack(part) for part in zip(*nets))
    return {"mean": mean, "deviation": deviation, "weights": weights, "biases": biases,
            "out_weights": out_weights[:, :, 0], "out_biases": out_biases[:, 0]}


def _scaled(features: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return np.clip((features - mean) / deviation, -FARTHEST, FARTHEST)


def _train_one(scaled: np.ndarray, wanted: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Weights and biases of the hidden layer and of the output, float32."""
    inputs = scaled.shape[1]
    net = [random.normal(0, np.sqrt(2 / inputs), (inputs, HIDDEN)).astype(np.float32), np.zeros(HIDDEN, np.float32),
           random.normal(0, 0.1 * np.sqrt(2 / HIDDEN), (HIDDEN, 1)).astype(np.float32), np.zeros(1, np.float32)]
    first, second = ([np.zeros_like(part) for part in net] for _ in range(2))
    batches = -(-len(scaled) // _BATCH)
    steps = min(_STEPS, _EPOCHS * batches)
    for step in range(steps):
        if step % batches == 0:
            order = random.permutation(len(scaled))
        chosen = order[step % batches * _BATCH:][:_BATCH]
        inner = scaled[chosen] @ net[0] + net[1]
        hidden = np.maximum(inner, 0)
        logit = np.clip((hidden @ net[2] + net[3])[:, 0], -50, 50)
        error = ((1 / (1 + np.exp(-logit)) - wanted[chosen]) / len(chosen))[:, None]
        back = error @ net[2].T * (inner > 0)
        gradients = [scaled[chosen].T @ back + _DECAY * net[0], back.sum(0),
                     hidden.T @ error + _DECAY * net[2], error.sum(0)]
        rate = np.float32(_RATE * 0.5 * (1 + np.cos(np.pi * step / steps)))
        for part, gradient, mean, square in zip(net, gradients, first, second):
            mean += np.float32(0.1) * (gradient - mean)
            square += np.float32(0.001) * (gradient * gradient - square)
            part -= rate * (mean / np.float32(1 - 0.9**(step + 1))) / (
                np.sqrt(square / np.float32(1 - 0.999**(step + 1))) + np.float32(1e-8))
    return net


def write_net(path: Path, net: ContactNet) -> None:
    """One JSON file, from which `read_net` takes the same numbers."""
    table = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(net).items()}
    table |= {"format": FORMAT, "features": feature_names(len(net.steps))}
    table = json.loads(json.dumps(_short(table)))  # tuples have become lists, as they will be read
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(table | {"digest": _digest(table)}) + "\n")


def read_net(path: Path) -> ContactNet:
    """The classifier in a file that `write_net` made; any other is refused in one sentence."""
    try:
        text = read_text(path, MOST_BYTES)
    except OSError as error:
        raise InputError(f"decode.learned.file: cannot read {path}: {error.strerror or error}; python -m emcore "
                         "learn-contacts writes it") from None
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON") from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise damaged(path, f"it has not the format {FORMAT}")
    try:
        whole = table.pop("digest", None) == _digest(table)
    except RecursionError:
        raise damaged(path, "it is nested too deeply") from None
    if not whole:
        raise damaged(path, "its digest does not fit what it holds")
    try:
        return _net_of(table)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(path, f"{type(error).__name__} {error}") from None


def damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is no classifier of contacts that can be used, as {why}; write it anew by python -m "
                      "emcore learn-contacts")


def _net_of(table: dict[str, Any]) -> ContactNet:
    steps = tuple(tuple(int(step) for step in group) for group in table["steps"])
    if not 2 <= len(steps) <= MOST_GROUPS + 1 or steps[0] != (1, 1, 1) or any(
            len(group) != 3 or min(group) < 1 for group in steps):
        raise ValueError(f"in its steps {steps[:MOST_GROUPS + 1]}")
    if table["features"] != feature_names(len(steps)):
        raise ValueError("in its features, which are those of another version")
    names = [field.name for field in fields(ContactNet) if field.type is np.ndarray]
    arrays = {name: np.array(table[name], np.float32) for name in names}
    count, (nets, hidden) = len(table["features"]), arrays["biases"].shape
    if nets > MOST_NETS or hidden > MOST_HIDDEN:
        raise ValueError(f"in its {nets} nets of {hidden} hidden units")
    shapes = {"mean": (count,), "deviation": (count,), "weights": (nets, count, hidden), "biases": (nets, hidden),
              "out_weights": (nets, hidden), "out_biases": (nets,)}
    for name, array in arrays.items():
        if array.shape != shapes[name] or not np.isfinite(array).all() or array.size == 0:
            raise ValueError(f"in the shape or the numbers of {name}")
    resolution = tuple(float(size) for size in table["resolution"])
    if not (arrays["deviation"] > 0).all() or len(resolution) != 3 or not min(resolution) > 0:
        raise ValueError("in its deviations or its resolution")
    return ContactNet(steps, resolution, str(table["fragments"]), tuple(map(str, table["made_of"])), **arrays)


def _short(value: Any) -> Any:
    """Numbers as float32 write them, which reads back to the same float32."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value


def _digest(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
