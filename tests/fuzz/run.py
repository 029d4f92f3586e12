"""Fuzzing with Atheris, which mutates by coverage: `make fuzz MINUTES=8`, or this file with `--minutes 8 [TARGET …]`.

Each target runs in a process of its own. What it finds (an exception that is no message to the user, or more than
`SECONDS` of CPU time for one input) is noted once per place under the folder, with the input, and fuzzing goes on;
what ends the process (a crash of native code, too much memory) is the last finding of that process. The corpus stays
there as well. Exit code 1 where there are findings.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

HERE = Path(__file__).parent
SECONDS = 10.0
"""CPU time that one input may take; the longest has MOST_BYTES."""
MOST_BYTES, MOST_MEGABYTES = 8192, 3000
FIGURES = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")


class Hang(BaseException):
    """One input took too long; nothing catches it."""


def main() -> int:
    from targets import TARGETS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for each target")
    parser.add_argument("--to", type=Path, default=Path("runs/fuzz"), help="corpus and findings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.targets[0], options.to, options.minutes * 60, options.seed)
        return 0
    print("| target | executions | minutes | of CPU time | coverage (edges) | features | findings |")
    print("|---|---|---|---|---|---|---|", flush=True)
    found = [drive(name, options) for name in options.targets or TARGETS]
    return int(any(found))


def drive(name: str, options: argparse.Namespace) -> int:
    """Fuzzes one target, anew after each death of the process; prints its row and returns the number of findings."""
    home = options.to / name
    home.mkdir(parents=True, exist_ok=True)
    start, executions, figures, seed = time.monotonic(), 0, (0, 0), options.seed
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    while (left := options.minutes - (time.monotonic() - start) / 60) > 0.05:
        command = [sys.executable, __file__, name, "--inside", "--to", str(home), "--minutes", str(left)]
        done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, check=False)
        (home / f"log-{seed}.txt").write_bytes(done.stdout + done.stderr)
        seen = FIGURES.findall(done.stderr)
        executions += int(seen[-1][0]) if seen else 0
        figures = max(figures, *[(int(cov), int(ft)) for _, cov, ft in seen])
        if done.returncode:
            (home / f"finding-died-{seed}.txt").write_bytes(done.stderr[-4000:])
        seed += 1
    findings = len(list(home.glob("finding-*.txt")))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    minutes = f"{(time.monotonic() - start) / 60:.1f} | {spent / 60:.1f}"
    print(f"| {name} | {executions:,} | {minutes} | {figures[0]} | {figures[1]} | {findings} |", flush=True)
    return findings


def fuzz(name: str, home: Path, seconds: float, seed: int) -> None:
    """Fuzzes one target in this process, until the time is up."""
    import atheris
    from targets import TARGETS

    target = TARGETS[name]
    words = home / "words"
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with atheris.instrument_imports(include=["gopd", "yaml"]):
        check = target.make(scratch)
    corpus = home / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(target.seeds()):  # not before: they import parts of the package as well
        (corpus / f"seed-{number}").write_bytes(content)
    signal.signal(signal.SIGVTALRM, _hang)

    def one(data: bytes) -> None:
        from gopd.errors import BadInput, RunFailed

        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            check(data, scratch)
        except (BadInput, RunFailed):
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            _note(error, data, home)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-max_len={MOST_BYTES}", "-timeout=120"]
    options += [f"-rss_limit_mb={MOST_MEGABYTES}", f"-artifact_prefix={home}/died-", f"-dict={words}"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS:g} s of CPU time")


def _note(error: BaseException, data: bytes, home: Path) -> None:
    """Keeps a finding with the input, once for each kind of error and innermost place in the package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}gopd{os.sep}" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).stem}-{ours[-1].name}-{ours[-1].lineno}"
    path = home / f"finding-{type(error).__name__}-{place}.txt"
    if not path.exists():
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
        path.with_suffix(".input").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
