from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gopd.sandbox import Limits, Outcome
from gopd.sandbox.process import launch

Run = Callable[..., Outcome]


def test_a_program_that_ends_well(run: Run) -> None:
    outcome = run(
        "import sys; print(sys.stdin.read()[::-1]); print('e', file=sys.stderr)", stdin="añb".encode()
    )
    assert (outcome.status, outcome.returncode) == ("ok", 0)
    assert (outcome.stdout, outcome.stderr) == ("bña\n".encode(), b"e\n")
    assert 0 < outcome.seconds < 10


def test_stdin_is_empty_unless_given(run: Run) -> None:
    assert run("import sys; print(repr(sys.stdin.read()))").stdout == b"''\n"


def test_the_program_is_the_main_module_and_finds_nothing_of_ours_in_it(run: Run) -> None:
    assert run("print(__name__, [n for n in globals() if n[0] != '_'])").stdout == b"__main__ []\n"
    code = "import sys\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1), sys.argv)"
    assert run(code).stdout == b"A(x=1) ['program.py']\n"


@pytest.mark.parametrize(
    ("code", "returncode"), [("1/0", 1), ("exit(3)", 3), ("def", 1), ("import os; os.abort()", -6)]
)
def test_failures_are_errors(run: Run, code: str, returncode: int) -> None:
    outcome = run(code)
    assert (outcome.status, outcome.returncode) == ("error", returncode)


def test_wall_clock_limit_even_for_a_sleeper_with_closed_output(run: Run) -> None:
    start = time.monotonic()
    outcome = run(
        "import os, time; print('x', flush=True); os.close(1); os.close(2); time.sleep(60)",
        limits=Limits(0.5),
    )
    assert outcome.status == "timeout"
    assert outcome.stdout == b"x\n"
    assert 0.5 <= time.monotonic() - start < 5


def test_cpu_limit(run: Run) -> None:
    outcome = run("while True: pass", limits=Limits(seconds=30, cpu_seconds=1))
    assert outcome.status == "timeout"
    assert outcome.seconds < 20


def test_output_cap_is_kept_and_ends_an_endless_printer(run: Run) -> None:
    outcome = run("while True: print('x' * 1000)", limits=Limits(output_bytes=100_000))
    assert outcome.status == "output-limit"
    assert len(outcome.stdout) + len(outcome.stderr) == 100_000
    exactly = run("import sys; sys.stdout.write('x' * 100_000)", limits=Limits(output_bytes=100_000))
    assert (exactly.status, len(exactly.stdout)) == ("ok", 100_000)
    one_more = run("import sys; sys.stdout.write('x' * 100_001)", limits=Limits(output_bytes=100_000))
    assert one_more.status == "output-limit"


def test_output_beyond_a_pipe_is_complete(run: Run) -> None:
    outcome = run("import sys; sys.stdout.write('o' * 300_000); sys.stderr.write('e' * 300_000)")
    assert (outcome.status, len(outcome.stdout), len(outcome.stderr)) == ("ok", 300_000, 300_000)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = bytearray(1 << 29)", b"MemoryError"),
        ("open('f', 'wb').write(b'x' * 70_000)", b"File too large"),
        ("files = [open('f', 'w') for _ in range(20)]", b"Too many open files"),
    ],
)
def test_resource_limits(run: Run, code: str, error: bytes) -> None:
    small = Limits(memory_bytes=1 << 28, file_bytes=65_536, open_files=16)
    outcome = run(code, limits=small)
    assert outcome.status == "error"
    assert error in outcome.stderr
    assert run(code).status == "ok"


def test_environment_and_packages_of_the_caller_are_out_of_reach(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert run("import os; print('SECRET_TOKEN' in os.environ)").stdout == b"False\n"
    assert b"ModuleNotFoundError" in run("import pytest").stderr
    assert b"ModuleNotFoundError" in run("import gopd").stderr


def test_open_files_of_the_caller_are_out_of_reach(run: Run, tmp_path: Path) -> None:
    opened = "import os\ndef is_open(f):\n    try: os.fstat(f)\n    except OSError: return False\n    return True\n"
    opened += "print([f for f in range(64) if is_open(f)])"
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        outcome = run(opened)
    assert outcome.stdout == b"[0, 1, 2]\n", outcome


def test_the_working_folder_is_fresh_and_removed_whatever_is_in_it(run: Run) -> None:
    messy = "for _ in range(1200): os.mkdir('d'); os.chdir('d')"
    locked = "os.mkdir('a'); os.mkdir('a/b', 0); open('a/b.txt', 'w').write('x')"
    gone = "os.rmdir(os.getcwd())"
    for code in (messy, locked, gone):
        outcome = run(f"import os\nprint(os.getcwd(), os.listdir())\n{code}")
        folder, listing = outcome.stdout.decode().split(" ", 1)
        assert (outcome.status if code != gone else "ok", listing) == ("ok", "[]\n"), outcome
        assert Path(folder).is_relative_to(tempfile.gettempdir())
        assert not list(Path(tempfile.gettempdir()).glob("gopd-sandbox-*"))


@pytest.mark.parametrize("ending", ["", "\nif child: time.sleep(60)", "\nif child: 1/0"])
def test_nothing_is_left_running_even_without_isolation(ending: str) -> None:
    """The child process inherits the output pipes and would hold them open for a minute."""
    start = time.monotonic()
    code = "import os, time\nchild = os.fork()\nif child: print(child, flush=True)\nelse: time.sleep(60)"
    outcome = launch("none", code + ending, b"", Limits(seconds=1))
    assert time.monotonic() - start < 10
    _wait_until_gone(int(outcome.stdout))


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def test_set_order_is_the_same_every_time(run: Run) -> None:
    code = "print(list({'pear', 'fig', 'apple', 'kiwi', 'plum', 'lime'}))"
    assert len({run(code).stdout for _ in range(4)}) == 1


def test_threads_run_programs_side_by_side(run: Run) -> None:
    results: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.__setitem__(i, run(f"print({i})").stdout))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: f"{i}\n".encode() for i in range(12)}


def test_descriptors_do_not_leak(run: Run) -> None:
    run("pass")
    before = len(os.listdir("/proc/self/fd"))
    run("1/0")
    run("while True: print(1)", limits=Limits(output_bytes=10))
    assert len(os.listdir("/proc/self/fd")) == before
