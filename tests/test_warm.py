"""python -m emcore warm: afterwards nothing is left that Numba would compile."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def compiled_functions():
    """module.function of everything that stands below @compiled."""
    for path in sorted((ROOT / "emcore").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                    isinstance(one, ast.Call) and ast.unparse(one.func) == "compiled" for one in node.decorator_list):
                yield f"{path.stem}.{node.name}"


@pytest.mark.long
def test_everything_is_compiled_ahead_and_a_second_time_nothing_is(tmp_path):
    pytest.importorskip("torch")

    def warm():
        kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}  # it would win
        done = subprocess.run([sys.executable, "-m", "emcore", "warm"], cwd=ROOT, capture_output=True, text=True,
                              env={**kept, "XDG_CACHE_HOME": str(tmp_path)}, timeout=1200)
        assert done.returncode == 0, done.stderr
        assert f"kept in {tmp_path}" in done.stdout
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}

    first = warm()
    made = {path.name.partition("-")[0] for path in first}
    wanted = set(compiled_functions())
    assert len(wanted) > 10
    assert wanted <= made
    assert warm() == first
