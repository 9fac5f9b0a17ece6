"""A process that carries out tasks of one work, started by local.py: python -c START, then pickles through pipes."""

import os
import pickle
import queue
import signal
import sys
import threading

from emcore.blocks.attempts import attempt

# what `python -c` is given, with the path of modules of the process that starts it as arguments; a script without a
# guard of its main part is not run again, as multiprocessing would
START = "import sys; sys.path[:] = sys.argv[1:]; from emcore.blocks.worker import serve; serve()"


def serve() -> None:
    """Takes the work and then (stage, number, share) from the standard input until it ends; answers with outcomes."""
    # the terminal sends it to all; the process that started this one ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints is no answer
    asked: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                asked.put(pickle.load(sys.stdin.buffer))
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(2)  # the process that started this one is gone; what is half done has no name yet

    work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        answers.write(pickle.dumps(attempt(work, *asked.get())))
        answers.flush()
