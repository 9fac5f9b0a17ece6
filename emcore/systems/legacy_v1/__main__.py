"""python -m emcore legacy_v1 train|test FLAGS"""

import sys
from collections.abc import Sequence

from emcore.errors import InputError, run_command
from emcore.systems.legacy_v1.flags import read_flags


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: python -m emcore legacy_v1 train|test FLAGS   (train --help and test --help list them)")
        return 0
    if not arguments or arguments[0] not in ("train", "test"):
        found = repr(arguments[0]) if arguments else "nothing"
        raise InputError(f"write python -m emcore legacy_v1 train FLAGS or test FLAGS (--help lists them); got {found}")
    flags = read_flags(arguments[0], arguments[1:])
    if arguments[0] == "train":
        from emcore.systems.legacy_v1.training import train

        return train(flags, arguments)
    from emcore.systems.legacy_v1.inference import test

    return test(flags)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
