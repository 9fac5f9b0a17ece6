"""What the choice of a tune costs on a volume that took no part in it, with every volume left out in turn.

The others choose everything: settings and threshold. Of several nets each has a threshold of its own, as the best ones
of two nets differ; the settings are those that are best in the mean over the nets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcore.decode.tune_stages import LEFT_OUT, NET, Scored
from emcore.decode.tune_store import Row
from emcore.files import csv_text, write_text


class LeftOut(NamedTuple):
    """A volume that was left out: the row that the others choose, and by net what is found for the volume."""

    volume: str
    chosen: Row
    found: dict[str, dict[str, Any]]  # by name of the prediction: threshold, others, scores, own

    @property
    def others(self) -> float:
        return sum(entry["others"] for entry in self.found.values()) / len(self.found)


def leave_out(sources: Sequence[Scored], rows: Sequence[Row], objective: str) -> list[LeftOut]:
    """The choice of the others for every volume; none where there are no others, or in rows of an older version."""
    outcomes = []
    for volume in dict.fromkeys(source.name.partition(NET)[0] for source in sources):
        names = [source.name for source in sources if source.name.partition(NET)[0] == volume]
        best = None
        for row in rows:
            found = row.found.get(objective, {}).get(LEFT_OUT, {})
            if not all(name in found and found[name]["others"] == found[name]["others"] for name in names):
                continue
            outcome = LeftOut(volume, row, {name: found[name] for name in names})
            if best is None or outcome.others < best.others:
                best = outcome
        outcomes += [] if best is None else [best]
    return outcomes


def told(outcome: LeftOut, objective: str) -> str:
    """A line for the user: what the others chose, and what that costs on the volume."""
    decode = outcome.chosen.decode
    entries = list(outcome.found.values())
    scores = list(dict.fromkeys([objective, "voi", "adapted_rand", *entries[0]["scores"]]))
    scores = [name for name in scores if name == objective or name.startswith(("voi", "adapted_rand"))]
    scores = [name for name in scores if name not in ("voi_split", "voi_merge") or name == objective]
    said = ", ".join(f"{name} {spread([entry['scores'][name] for entry in entries])}" for name in scores)
    thresholds = spread([entry["threshold"] for entry in entries])
    return (f"{outcome.volume} left out: the others choose {decode['fragments']}, {decode['statistic']}, threshold "
            f"{thresholds}, {objective} {outcome.others:.4f} there; on {outcome.volume} {said}; its own best threshold "
            f"would give {objective} {spread([entry['own'] for entry in entries])}")


def spread(values: Sequence[float]) -> str:
    """A value, or the mean of several with the smallest and the largest."""
    mean = f"{sum(values) / len(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f} of {len(values)} nets)"


def write_left_out(path: Path, sources: Sequence[Scored], rows: Sequence[Row], objective: str) -> None:
    """Prints a line for every volume and writes a row for every prediction; nothing where all have one truth."""
    outcomes = leave_out(sources, rows, objective)
    if not outcomes:
        return
    names = list(next(iter(outcomes[0].found.values()))["scores"])
    lines = [["left_out", "fragments", "statistic", "low", "high", "threshold", f"{objective}_of_others", *names,
              f"{objective}_by_own_threshold"]]
    for outcome in outcomes:
        print(told(outcome, objective))
        for name, entry in outcome.found.items():
            settings = [outcome.chosen.decode.get(key, "") for key in ("fragments", "statistic", "low", "high")]
            lines.append([name, *settings, entry["threshold"], round(entry["others"], 6),
                          *(round(entry["scores"][score], 6) for score in names), round(entry["own"], 6)])
    write_text(path, csv_text(lines))
