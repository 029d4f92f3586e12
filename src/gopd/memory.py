"""What the process holds of the machine's memory: kept between uses, and its peak, also phase by phase."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the C library keep freed blocks for the next ones instead of giving every large one back at once.

    A training step makes the same large tensors again and again; with glibc's defaults each of them is mapped,
    page-faulted, zeroed and unmapped anew. False where the C library cannot be told (it is not glibc).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))


def peak_memory_gb() -> float:
    """The process's peak resident memory, in 10^9 bytes; on Linux since the last `restart_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def restart_peak() -> None:
    """Gives free memory back, and from here on `peak_memory_gb` counts anew; where that is possible (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        with suppress(AttributeError):  # not glibc: nothing was kept
            ctypes.CDLL(None).malloc_trim(0)
        path.write_text("5")
