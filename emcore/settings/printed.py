"""python -m emcore config train|infer|evaluate: every setting of a script with its default and meaning, as TOML."""

import argparse
from collections.abc import Sequence

from emcore.config import describe
from emcore.settings import READS, Settings


def main(arguments: Sequence[str]) -> int:
    """Prints the settings."""
    parser = argparse.ArgumentParser(prog="python -m emcore config", description=describe.__doc__)
    parser.add_argument("script", choices=list(READS), help="whose settings to print")
    options = parser.parse_args(arguments)
    print(describe(Settings, READS[options.script]), end="")
    return 0
