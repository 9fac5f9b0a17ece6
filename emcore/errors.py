"""The one exception for a user's mistake, and how a command turns it into a sentence and exit code 2."""

import sys
from collections.abc import Callable, Sequence


class InputError(ValueError):
    """What is wrong with which input, what was found, what would work: one sentence."""


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
        print("error: this command needs torch, which is not installed here: pip install torch", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
