"""The one exception for a user's mistake, and how a command turns it into a sentence and exit code 2."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


class InputError(ValueError):
    """What is wrong with which input, what was found, what would work: one sentence."""


def lacking(what: str, extra: str) -> InputError:
    """The sentence for a package of an extra that is not installed, with the command that installs it here."""
    return InputError(f"{what} needs the extra {extra}, which is not installed here: {installation(extra)}")


def installation(extra: str) -> str:
    """The command that installs an extra into this Python; a checkout names the packages, as it is not installed."""
    import shlex

    project, packages = Path(__file__).resolve().parent.parent / "pyproject.toml", [f"emcore[{extra}]"]
    if project.is_file():
        import tomllib

        packages = tomllib.loads(project.read_text())["project"]["optional-dependencies"][extra]
    return f"{this_python()} -m pip install {shlex.join(packages)}"


def this_python() -> str:
    """How a shell in the present folder starts this Python: by its name where that finds it, else by its path."""
    import os
    import shlex
    import shutil

    for name in ("python", "python3"):
        if shutil.which(name) == sys.executable:
            return name
    below = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if below.startswith("..") else below)


def death_of_worker(error: BaseException) -> InputError | None:
    """The sentence for a process of torch's loader that died, if an error stems from that; else None.

    Torch raises such a death wherever the program happens to be, so it can come out of the writing of a file.
    """
    while error is not None:
        if "DataLoader worker" in str(error):
            return InputError(f"a process that reads patches died: {str(error).splitlines()[0]} If memory ran out, "
                              "lower data.workers or data.prefetch")
        error = error.__cause__ or error.__context__
    return None


def run_command(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """The exit code of a command: 2 with one sentence for a user's mistake, 130 when interrupted."""
    try:
        return main(arguments) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(f"error: this command needs torch, which is not installed here: {this_python()} -m pip install torch",
              file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
