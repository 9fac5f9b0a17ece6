"""Processes that share the suite: long tests one by one, and nothing of a file outlives it."""

import subprocess
import sys

from tests.scripts import environment

FIRST = """
import pytest

@pytest.fixture(scope="module")
def place():
    yield 1
    print("the first file has ended")

@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2])
def test_first(place, number):
    assert place
"""
SECOND = """
import pytest

@pytest.mark.long
def test_second():
    print("the second file begins")
"""



def test_a_test_that_another_process_has_taken_leaves_its_file_ended(tmp_path):
    (tmp_path / "test_a.py").write_text(FIRST)
    (tmp_path / "test_b.py").write_text(SECOND)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = long\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-s", "-q", "--long", "1", "--share", "taken",
               "."]
    whole = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert "3 passed" in whole.stdout, whole.stdout
    names = sorted((tmp_path / "taken").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for kept, count in ((names[1:2], "2 passed"), (names, "no tests ran")):
        for path in names:
            path.unlink(missing_ok=True)
        for path in kept:
            path.touch()
        part = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True,
                              text=True)
        assert count in part.stdout, part.stdout
        assert "error" not in part.stdout.lower()
    first, second = (whole.stdout.index(f"the {name} file") for name in ("first", "second"))
    assert first < second
