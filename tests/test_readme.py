"""What the README says, run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_library_example_runs_and_segments_perfectly(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert 15 <= len([line for line in code.splitlines() if line.strip()]) <= 25
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    split, merge = (float(value) for value in re.search(r"Voi\(split=([^,]+), merge=([^)]+)\)", done.stdout).groups())
    assert split + merge < 0.05
    assert (tmp_path / "labels.h5").exists()


def test_every_test_that_a_promise_names_exists():
    named = re.findall(r"`(test_\w+\.py)`", (ROOT / "docs" / "trust.md").read_text())
    assert len(named) > 12
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_every_file_the_readme_points_to_exists():
    text = (ROOT / "README.md").read_text()
    paths = re.findall(r"`((?:emcore|kernels|configs|docs)/[\w/.*]*|\w+\.py)`", text)
    paths += re.findall(r"\]\(([\w/.]+)\)", text)
    assert len(paths) > 15
    for path in paths:
        assert list(ROOT.glob(path.rstrip("/"))), path
