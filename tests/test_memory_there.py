"""The memory that is left to a process: by the machine, its control groups and its address space."""

import subprocess
import sys

import pytest

from emcore import memory
from emcore.errors import InputError

GIB = 1 << 30


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The files of a kernel that has 8 GiB available and no control group; a test writes more of them."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {8 << 20} kB\nHugePages_Free: 0\n")
    monkeypatch.setattr(memory, "PROCESSES", tmp_path / "proc")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "groups")
    return tmp_path


def write_group(kernel, place, **files):
    folder = kernel / "groups" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_without_limits_it_is_what_the_machine_has_available(kernel):
    assert memory.memory_there() == 8 * GIB


def test_the_tightest_control_group_counts_and_its_file_cache_is_free(kernel):
    (kernel / "proc/self/cgroup").write_text("0::/job/step\n")
    write_group(kernel, "", max="max", current=9 * GIB)
    cached = f"anon 7\nactive_file {GIB}\ninactive_file {GIB // 2}"
    write_group(kernel, "job", max=5 * GIB, current=4 * GIB, stat=cached)
    write_group(kernel, "job/step", max="max", current=GIB)
    assert memory.memory_there() == 2.5 * GIB
    write_group(kernel, "job/step", max=2 * GIB, current=GIB)
    assert memory.memory_there() == GIB
    write_group(kernel, "job/step", max=GIB, current=2 * GIB)
    assert memory.memory_there() == 0


def test_groups_of_the_older_version_and_of_containers_are_found(kernel):
    (kernel / "proc/self/cgroup").write_text("9:pids:/a\n4:memory:/docker/c0ffee\n0::/\n")
    write_group(kernel, "memory", limit_in_bytes=3 * GIB, usage_in_bytes=GIB, stat=f"total_inactive_file {GIB // 4}")
    assert memory.memory_there() == 2.25 * GIB  # the container sees its group at the top


def test_a_limit_of_address_space_counts():
    code = ("import resource, emcore.memory as memory\n"
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); print(memory.memory_there())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 28 < int(done.stdout) < 1 << 30


def test_too_little_is_told_in_one_sentence(kernel):
    memory.check_memory(8 * GIB, "a section", "cut it")
    with pytest.raises(InputError, match="a section needs about 12 GiB of memory, and 8 GiB are left to this "
                                         "process: cut it"):
        memory.check_memory(12 * GIB, "a section", "cut it")
