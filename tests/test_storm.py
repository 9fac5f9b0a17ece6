"""Random calls through the public faces of segment and metrics, in a child process: no crash, no hang, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("calls", [100, pytest.param(2000, marks=pytest.mark.long)])
def test_a_storm_of_random_calls_ends_in_results_and_sentences(calls):
    done = subprocess.run([sys.executable, "-m", "tests.storm", "--seed", "0", "--calls", str(calls)], cwd=ROOT,
                          capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    assert f"{calls} calls, 0 wrong" in done.stdout
