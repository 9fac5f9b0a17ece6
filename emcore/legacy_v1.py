"""The old name of `python -m emcore legacy_v1`: it still works in this release, and says where it went."""

import sys

from emcore.errors import run_command

if __name__ == "__main__":
    from emcore.systems.legacy_v1.__main__ import main

    print("python -m emcore.legacy_v1 is now python -m emcore legacy_v1; the next release no longer has the old name",
          file=sys.stderr)
    sys.exit(run_command(main, sys.argv[1:]))
