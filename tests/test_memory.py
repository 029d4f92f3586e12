from __future__ import annotations

import subprocess
import sys

import pytest

from gopd import memory

PROGRAM = """
import resource, sys, torch
from gopd.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
fewest = float("inf")
for number in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (8, 64, 100, 64):
        torch.ones(megabytes * 250_000).sum()
    fewest = min(fewest, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(fewest)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc are Linux's")


def faults(how: str) -> int:
    """Page faults of a round of large tensors: the fewest of eight equal rounds."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@linux
def test_kept_memory_is_not_faulted_in_again() -> None:
    assert faults("plain") > 10_000, "without it every large tensor is mapped anew"
    assert faults("keep") < 1000


@linux
def test_a_phase_has_a_peak_of_its_own() -> None:
    blocks = [bytearray(200_000_000)]
    high = memory.peak_memory_gb()
    blocks.clear()
    memory.restart_peak()
    low = memory.peak_memory_gb()
    assert low < high - 0.15
    blocks.append(bytearray(100_000_000))
    assert low + 0.09 < memory.peak_memory_gb() < low + 0.15
