"""Whether memory that grows in the soak is in use, or free and kept by malloc (glibc's).

    python experiments/soak/memory.py --steps 200         # the soak's run, looked at every 10 steps
    python experiments/soak/memory.py --comparisons 12000  # the math grader's process

After every 100 steps free memory is given back to the system, and what stays resident is in use.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from run import OVERRIDES, ROOT, steps


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2`: `uordblks` and `fordblks`, bytes handed out and free, are the last but two and but one."""

    _fields_ = [
        ("others", ctypes.c_size_t * 7),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--comparisons", type=int, help="of the grader, instead of training")
    options = parser.parse_args()
    if options.comparisons:
        grade(options.comparisons)
    else:
        with tempfile.TemporaryDirectory(prefix="soak-") as work:
            sys.exit(train(Path(work), options.steps))


def train(work: Path, last: int) -> int:
    """Trains in this process while a thread looks on; then stops as Ctrl-C does."""
    from gopd.cli import main as gopd

    threading.Thread(target=look, args=(work / "soak" / "metrics.jsonl", last), daemon=True).start()
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    return 0 if gopd(["train", recipe, *OVERRIDES, f"tracking.folder={work}"]) == 130 else 1


def look(metrics: Path, last: int) -> None:
    """Prints what is resident, handed out by malloc, free in its heap, and how many blocks Python holds."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocInfo
    for step in range(10, last + 1, 10):
        while steps(metrics) < step:
            time.sleep(0.05)
        info = libc.mallinfo2()
        figures = f"resident {resident():.1f} MB, handed out {info.uordblks / 1e6:.1f}, free {info.fordblks / 1e6:.1f}"
        print(f"step {step}: {figures}, Python's blocks {sys.getallocatedblocks():,}", file=sys.stderr)
        if step % 100 == 0:
            gc.collect()
            before = resident()
            libc.malloc_trim(0)
            print(f"given back: resident {before:.1f} MB before, {resident():.1f} after", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)


def grade(count: int) -> None:
    """Compares different answers, and prints what the grader's process holds after every thousand."""
    from gopd.verify import math

    draw = random.Random(0)
    for number in range(1, count + 1):
        a, b, c = (draw.randrange(1, 10 ** draw.randrange(1, 5)) for _ in range(3))
        answers = (f"{a}/{b}", f"\\frac{{{a}}}{{{b}}}", f"{a}+{b}", f"{a} x^2 + {b} x", f"({a}, {b}, {c})")
        math.equal(str(draw.randrange(1000)), draw.choice(answers))
        if number % 1000 == 0:
            (grader,) = psutil.Process().children()
            print(f"{number} comparisons: resident {grader.memory_info().rss / 1e6:.1f} MB", flush=True)


def resident() -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


if __name__ == "__main__":
    main()
