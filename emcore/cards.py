"""The trained weights that come with emcore: what they are, and the file that one of their names stands for."""

from dataclasses import dataclass
from pathlib import Path

from emcore.config import from_table, read_toml
from emcore.errors import InputError

FOLDER = Path(__file__).resolve().parent.parent / "weights"  # a checkout has it, a wheel has not


@dataclass(frozen=True)
class Card:
    """What the file NAME.toml beside weights says of them."""

    file: str  # the name of the weights' file in the same folder
    predicts: str
    tissue: str
    resolution: tuple[float, float, float]  # nm, z, y, x
    trained_on: str
    licence: str
    reaches: str
    fails: str
    use: str  # one command


def cards(folder: Path = FOLDER) -> dict[str, Card]:
    """The cards of a folder by their names."""
    return {path.stem: from_table(Card, read_toml(path), path.name) for path in sorted(folder.glob("*.toml"))}


def checkpoint_file(given: str | Path, folder: Path = FOLDER) -> Path:
    """The file of a checkpoint that is given by its path, or by the name of weights that come with emcore."""
    path = Path(given)
    if path.is_file() or len(path.parts) != 1 or path.suffix:
        return path
    shipped = folder / f"{given}.pt"
    if shipped.exists():
        return shipped
    shown = cards(folder)
    if given in shown:
        raise InputError(f"{given} is no net but the classifier {shown[given].file}: name {folder / shown[given].file} "
                         "in decode.learned.file")
    names = [name for name, card in shown.items() if card.file.endswith(".pt")]
    there = f"there are {', '.join(names)}" if names else f"they stand in {folder}, which an installed package has not"
    raise InputError(f"{given} is neither a file nor the name of weights that come with emcore; {there}")


def main(arguments: list[str]) -> int:
    """Prints the cards."""
    import argparse
    import textwrap

    parser = argparse.ArgumentParser(prog="python -m emcore models", description=__doc__)
    parser.parse_args(arguments)
    found = cards()
    if not found:
        raise InputError(f"{FOLDER} holds no weights: they come with a checkout of emcore and not with an installed "
                         "package")
    for name, card in found.items():
        rows = {"predicts": card.predicts, "tissue": card.tissue,
                "resolution": f"{'×'.join(f'{size:g}' for size in card.resolution)} nm (z, y, x)",
                "trained on": card.trained_on, "licence": card.licence, "reaches": card.reaches,
                "fails on": card.fails, "use": card.use}
        print(f"{name}   weights/{card.file}")
        for row, text in rows.items():
            lines = [text] if row == "use" else textwrap.wrap(text, 104)
            print("\n".join(f"  {row if line is lines[0] else '':<12}{line}" for line in lines))
        print()
    print("Where a file ends in .pt, --checkpoint, infer.checkpoint and train.start_from take the name in place of its "
          "path.")
    return 0
