"""Memory pages: mostly kept by the process once it has them, and only where a net runs on the CPU."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from emcore.engine.memory import keep_pages

kept = keep_pages(sys.argv[1])
nn = torch.nn
net = nn.Sequential(nn.Conv3d(1, 16, 1), nn.BatchNorm3d(16), nn.ELU(), nn.BatchNorm3d(16), nn.ELU())
image = torch.rand(1, 1, 10, 256, 256)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(image).sum().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), min(faults[1:]))
"""


def faults(device):
    """Whether pages are kept, and how many new ones a step needs."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, device], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator of glibc")
def test_the_next_step_of_a_net_needs_few_new_pages_and_with_a_gpu_the_allocator_is_left_alone():
    kept, few = faults("cpu")
    if not kept:
        pytest.skip("this C library has no mallopt")
    left_alone, many = faults("cuda")
    assert not left_alone
    assert few < many / 3
