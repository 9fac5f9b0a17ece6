"""No lack of memory is swallowed by a kernel: each allocation of each of them fails once, in a child process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = """
#include <atomic>
#include <cstdlib>
#include <new>
static std::atomic<long> left(-1);
static std::atomic<int> failed(0);
extern "C" void emcore_fail_after(long number) { failed = 0; left = number; }
extern "C" int emcore_failed() { return failed; }
void* operator new(std::size_t size) {
    if (left >= 0 && left-- == 0) { failed = 1; throw std::bad_alloc(); }
    if (void* memory = std::malloc(size ? size : 1)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("c++"), reason="needs Linux and c++")
def test_every_allocation_of_a_kernel_that_fails_is_a_memory_error(tmp_path):
    source, library = tmp_path / "failing.cpp", tmp_path / "failing.so"
    source.write_text(LIBRARY)
    subprocess.run(["c++", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    done = subprocess.run([sys.executable, "-m", "tests.memory_failures"], cwd=ROOT, capture_output=True, text=True,
                          timeout=900, env=os.environ | {"LD_PRELOAD": str(library)})
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "skeletonize" in done.stdout
