"""How many settings there are, how many each recipe has by the kinds that it names, and how many of those act.

    python -m bench.settings_count

A setting of a list of tables counts once. What does not act: settings of augmentations that are switched off, and
with [pretrain] the tables that only the learning of targets reads.
"""

import dataclasses
from pathlib import Path
from typing import Any

from emcore import config
from emcore.config.schema import hints, items, join, tables
from emcore.settings import Settings
from emcore.settings.augment import Step

ROOT = Path(__file__).resolve().parent.parent
OF_TARGETS = ("labels", "target", "loss")  # tables that masked pretraining does not read


def every(schema: type, where: str = "") -> set[str]:
    """The keys of all settings of all kinds."""
    found = set()
    for name, kind in hints(schema).items():
        key, inner = join(where, name), (*tables(kind), *items(kind))
        found |= set().union(*(every(choice, key) for choice in inner)) if inner else {key}
    return found


def given(value: Any, where: str = "", acting: bool = False) -> set[str]:
    """The keys of the settings of a config; acting: without those of augmentations that are off."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return set().union(*(given(item, where, acting) for item in value))
    if not dataclasses.is_dataclass(value):
        return {where}
    if acting and isinstance(value, Step) and not any(config.to_table(value)["probability"]
                                                      if isinstance(value.probability, tuple) else [value.probability]):
        return set()
    return set().union(*(given(getattr(value, name), join(where, name), acting) for name in hints(type(value))))


def main() -> None:
    print(f"{len(every(Settings))} settings of all kinds; those of each recipe, and how many of them act:")
    for path in sorted((ROOT / "configs").rglob("*.toml")):
        settings = config.load(Settings, path)
        acting = {key for key in given(settings, acting=True)
                  if settings.pretrain is None or key.partition(".")[0] not in OF_TARGETS}
        print(f"{path.stem:28} {len(given(settings)):4} {len(acting):4}")


if __name__ == "__main__":
    main()
