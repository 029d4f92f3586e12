"""What hostile programs try, in each isolation. Each attack says `done` for every way it got through.

Should the sandbox be broken, the attacks reach the machine that runs these tests: so signals to others than a victim of
our own are of number 0, which asks and does nothing, and no bomb is large.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gopd import sandbox
from gopd.errors import BadInput, RunFailed
from gopd.sandbox import Limits, Outcome, layers, seccomp
from gopd.sandbox.process import launch

Run = Callable[..., Outcome]

ATTEMPTS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try:
        result = action()
    except OSError as error:
        return print(name, type(error).__name__)
    print(name, "done", result)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


def attempts(run: Run, **actions: str) -> dict[str, str]:
    """What became of each action, an expression: the name of the error, or `done` and its value."""
    lines = [f"attempt({name!r}, lambda: {action})" for name, action in actions.items()]
    outcome = run("\n".join([ATTEMPTS, *lines]))
    assert outcome.status == "ok", outcome
    return dict(line.split(" ", 1) for line in outcome.stdout.decode().splitlines())


REFUSED = ("PermissionError", "FileNotFoundError", "OSError")  # the last: a read-only file system


def all_refused(found: dict[str, str]) -> bool:
    return all(error in ("PermissionError", "FileNotFoundError") for error in found.values())


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_files_of_the_system_and_of_the_user_cannot_be_read(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    paths = ["/etc/passwd", "/etc/hostname", str(secret), __file__, str(Path.home() / ".bashrc")]
    found = attempts(run, **{f"f{i}": f"open({path!r}).read()" for i, path in enumerate(paths)})
    assert len(found) == 5
    assert all_refused(found), found
    here = str(Path(__file__).parent)
    assert all_refused(attempts(run, here=f"os.listdir({here!r})", there=f"os.listdir({str(tmp_path)!r})"))


def test_the_environment_of_the_caller_cannot_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    pid = os.getpid()
    found = attempts(
        run,
        own="open('/proc/self/environ').read()",
        parent="open(f'/proc/{os.getppid()}/environ').read()",
        caller=f"open('/proc/{pid}/environ').read()",
        first="open('/proc/1/environ').read()",
    )
    assert all_refused(found), found
    assert b"hunter2" not in run("import os; print(os.environ)").stdout


def test_nothing_can_be_written_outside_the_working_folder(run: Run, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    before = kept.stat()
    python = str(Path(sys.base_prefix) / "lib" / "gopd-was-here")
    targets = [str(tmp_path / "new"), "/new", "/usr/new", "/dev/shm/new", "/var/tmp/new", python]
    found = attempts(run, **{f"w{i}": f"open({path!r}, 'w')" for i, path in enumerate(targets)})
    assert len(found) == 6
    assert all(error in REFUSED for error in found.values()), found
    path = repr(str(kept))
    found = attempts(
        run,
        append=f"open({path}, 'a')",
        truncate=f"os.truncate({path}, 0)",
        chmod=f"os.chmod({path}, 0o777)",
        chown=f"os.chown({path}, 1, 1)",
        utime=f"os.utime({path}, (0, 0))",
        attribute=f"os.setxattr({path}, 'user.x', b'x')",
        remove=f"os.remove({path})",
        rename=f"os.rename({path}, 'here')",
        link=f"os.link({path}, 'here')",
        folder=f"os.mkdir({str(tmp_path / 'folder')!r})",
        pipe=f"os.mkfifo({str(tmp_path / 'pipe')!r})",
    )
    assert len(found) == 11
    assert all(error in REFUSED for error in found.values()), found
    after = kept.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime) == (before.st_mode, before.st_uid, before.st_mtime)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"


def test_symlinks_out_of_the_working_folder_lead_nowhere(run: Run, tmp_path: Path) -> None:
    """Neither for the program, nor for what removes the folder while a thread swaps folder and link."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("as it was")
    outside = repr(str(tmp_path))
    found = attempts(run, follow=f"(os.symlink({outside}, 'out'), open('out/kept/file').read())")
    assert all_refused(found), found
    racing = f"""
import os, threading, time
os.mkdir("a"); os.mkdir("a/kept"); open("a/kept/file", "w").close()
os.symlink({outside}, "b")
def swap():
    while True:
        os.rename("a", "c"); os.rename("b", "a"); os.rename("c", "b")
threading.Thread(target=swap, daemon=True).start()
time.sleep(0.3)
"""
    assert run(racing).status == "ok"
    assert (tmp_path / "kept" / "file").read_text() == "as it was"


def test_no_network_and_no_sockets(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0gopd-test-abstract")
        unix.listen()
        server.settimeout(0.2)
        unix.settimeout(0.2)
        where = server.getsockname()
        found = attempts(
            run,
            tcp=f"__import__('socket').create_connection({where!r})",
            udp="__import__('socket').socket(2, 2)",
            unix="__import__('socket').socket(1, 1).connect('\\0gopd-test-abstract')",
            netlink="__import__('socket').socket(16, 3)",
            ring=f"call({425}, 1, ctypes.create_string_buffer(256))",
        )
        assert len(found) == 5
        assert all_refused(found), found
        for listener in (server, unix):
            with pytest.raises(TimeoutError):
                listener.accept()


def test_threads_and_asyncio_work(run: Run) -> None:
    code = "import asyncio, threading\nseen = []\nt = threading.Thread(target=seen.append, args=(1,))\n"
    code += (
        "t.start(); t.join()\nasync def f(): await asyncio.sleep(0); return 2\nprint(seen, asyncio.run(f()))"
    )
    assert run(code).stdout == b"[1] 2\n"


def test_no_new_processes(run: Run) -> None:
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    found = attempts(
        run,
        fork="os.fork()",
        spawn="os.posix_spawn('/usr/bin/env', ['env'], {})",
        shell="__import__('subprocess').run(['/usr/bin/env'])",
        clone=f"call({clone}, 17, 0, 0, 0, 0)",
        bomb="[os.fork() for _ in range(4)]",
    )
    assert len(found) == 5
    assert all_refused(found), found
    clone3 = attempts(run, clone3="call(435, ctypes.create_string_buffer(64), 64)")
    assert clone3 == {"clone3": "OSError"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
def test_the_32_bit_system_calls_are_no_way_around_the_filter(run: Run) -> None:
    """`mov eax, 2; int 0x80; ret`: fork by the old gate, whose numbers mean other calls."""
    code = "import ctypes, mmap\npage = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b802000000cd80c3'))\n"
    code += "print('before', flush=True)\n"
    code += "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())"
    outcome = run(code)
    assert (outcome.status, outcome.stdout) == ("error", b"before\n")
    assert outcome.returncode < 0


def test_other_processes_cannot_be_harmed(run: Run, victim: subprocess.Popen[bytes]) -> None:
    pid, ptrace = victim.pid, {"x86_64": 101, "aarch64": 117}[platform.machine()]
    found = attempts(
        run,
        kill=f"os.kill({pid}, 9)",
        caller=f"os.kill({os.getpid()}, 0)",
        everyone="os.kill(-1, 0)",
        group=f"os.killpg(os.getpgid({pid}), 9)",
        ptrace=f"call({ptrace}, 16, {pid}, 0, 0)",
        pidfd=f"call(434, {pid}, 0)",
        limits=f"__import__('resource').prlimit({pid}, 0, (1, 1))",
        priority=f"os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
        memory=f"open('/proc/{pid}/mem', 'rb')",
    )
    assert all(
        error in ("PermissionError", "ProcessLookupError", "FileNotFoundError") for error in found.values()
    ), found
    time.sleep(0.1)
    assert victim.poll() is None
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, os.getpid())


def test_the_kernel_beyond_what_programs_need_is_closed(run: Run) -> None:
    numbers = [pair for name, pair in seccomp._DENIED.items()]
    column = list(seccomp.MACHINES).index(platform.machine())
    calls = {
        f"c{pair[column]}": f"call({pair[column]}, 0, 0, 0, 0, 0, 0)" for pair in numbers if pair[column]
    }
    calls.pop(
        "c58", None
    ) if platform.machine() == "x86_64" else None  # vfork returns twice where it is allowed
    found = attempts(run, **calls)
    assert len(found) > 60
    assert set(found.values()) == {"PermissionError"}, found


def test_the_numbers_of_the_system_calls_are_those_of_the_kernel_headers() -> None:
    def of(header: str) -> dict[str, int]:
        if not Path(header).exists():
            pytest.skip(f"the kernel's headers are not installed: {header}")
        defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
        return {name: int(number) for name, number in defined}

    headers = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")
    for column, header in enumerate(headers):
        known = of(header)
        limited = {name: numbers for name, (numbers, _) in seccomp._LIMITED.items()}
        denied = seccomp._DENIED | seccomp._DENIED_WITHOUT_NAMESPACES | seccomp._OWN_ONLY
        for name, numbers in (denied | limited).items():
            if numbers[column] is not None and name in known:
                assert known[name] == numbers[column], (name, header)
            elif numbers[column] is None:
                assert name not in known, (name, header)


@pytest.mark.parametrize(
    "bomb",
    [
        "x = bytearray(1 << 40)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 'a'\nwhile True: x += x",
    ],
)
def test_memory_bombs(run: Run, bomb: str) -> None:
    start = time.monotonic()
    outcome = run(bomb, limits=Limits(memory_bytes=1 << 28))
    assert outcome.status == "error"
    assert time.monotonic() - start < 10


def test_limits_cannot_be_raised(run: Run) -> None:
    code = "import resource\nfor kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
    code += (
        "    soft, hard = resource.getrlimit(kind)\n    try: resource.setrlimit(kind, (hard + 1, hard + 1))\n"
    )
    code += "    except (ValueError, OSError): print('refused')"
    assert run(code).stdout == b"refused\n" * 3


def test_no_capability_is_left(run: Run) -> None:
    code = "import ctypes\nset = (ctypes.c_uint * 6)(*[9] * 6)\nhead = (ctypes.c_uint * 2)(0x20080522, 0)\n"
    code += "print(ctypes.CDLL(None).capget(head, set), list(set[:2]), list(set[3:5]))"
    assert run(code).stdout == b"0 [0, 0] [0, 0]\n"  # effective and permitted, lower and upper half


def test_the_working_folder_holds_only_so_much() -> None:
    code = "for i in range(100): open(f'f{i}', 'wb').write(bytes(1 << 23))"
    outcome = launch("namespaces", code, b"", Limits())
    assert outcome.status == "error"
    assert b"No space left on device" in outcome.stderr


def test_a_gigabyte_of_output(run: Run) -> None:
    start = time.monotonic()
    outcome = run("import os\nfor _ in range(1024): os.write(1, bytes(1 << 20))")
    assert outcome.status == "output-limit"
    assert len(outcome.stdout) + len(outcome.stderr) <= Limits().output_bytes
    assert time.monotonic() - start < 10


def test_a_cleared_alarm_and_caught_signals_do_not_extend_the_time(run: Run) -> None:
    code = "import signal, time\nsignal.alarm(0)\n"
    code += "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    code += "    except (OSError, ValueError): pass\n"
    start = time.monotonic()
    assert run(code + "while True: pass", limits=Limits(seconds=0.5)).status == "timeout"
    assert run(code + "while True: time.sleep(9)", limits=Limits(seconds=0.5)).status == "timeout"
    spin = run(code + "while True: pass", limits=Limits(seconds=20, cpu_seconds=1))
    assert spin.status in ("error", "timeout")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "os.close(1); os.close(2)", "sys.stdout.write('\\ud800')", "exit()"]
)
def test_ways_to_end_that_are_not_errors_of_the_sandbox(run: Run, ending: str) -> None:
    outcome = run(f"import os, sys\nprint('x', flush=True)\n{ending}")
    assert outcome.stdout.startswith(b"x\n")
    assert outcome.status == ("error" if "ud800" in ending else "ok")


def test_deep_recursion_ends(run: Run) -> None:
    small = Limits(seconds=60, cpu_seconds=60, memory_bytes=1 << 28)  # a busy machine needs more than 10 s
    shallow = run("def f(): f()\nf()", limits=small)
    deep = run("import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: [f(x)]\nf(1)", limits=small)
    native = run(
        "import re, sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        limits=small,
    )
    assert [outcome.status for outcome in (shallow, deep, native)] == ["error"] * 3


def test_proc_holds_nothing_to_climb_out_by(run: Run) -> None:
    found = attempts(
        run,
        root="os.listdir('/proc/self/root')",
        first="os.listdir('/proc/1/root')",
        descriptors="os.listdir('/proc/self/fd')",
        memory="open('/proc/self/mem', 'r+b')",
        settings="open('/proc/sys/kernel/core_pattern', 'w')",
        mounts="open('/proc/mounts').read()",
        devices="os.listdir('/sys')",
    )
    assert len(found) == 7
    assert all_refused(found), found


def test_with_namespaces_the_program_is_nobody_and_alone() -> None:
    code = "import os, socket\nprint(os.getuid(), os.getgid(), os.getpid() < 10, socket.gethostname())"
    assert launch("namespaces", code, b"", Limits()).stdout == b"65534 65534 True sandbox\n"


def test_a_sandbox_that_does_not_start_is_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    layers._bubblewrap.cache_clear()
    monkeypatch.setattr(layers, "find_bubblewrap", lambda: shutil.which("false"))
    with pytest.raises(RunFailed, match="could not be started"):
        launch("namespaces", "print(1)", b"", Limits())
    monkeypatch.undo()
    layers._bubblewrap.cache_clear()


@contextlib.contextmanager
def without(*missing: str) -> Iterator[None]:
    """As on a machine where these isolations fail."""
    with pytest.MonkeyPatch.context() as patch:

        def failing(isolation: str, *rest: object) -> Outcome:
            if isolation in missing:
                raise RunFailed(f"no {isolation} here")
            return launch(isolation, *rest)  # type: ignore[arg-type]

        patch.setattr(sandbox, "launch", failing)
        patch.setattr(sandbox, "_unsandboxed_allowed", False)
        sandbox._probe.cache_clear()
        yield
    sandbox._probe.cache_clear()


def test_the_best_isolation_is_found_by_trying_and_its_lack_is_said_once() -> None:
    with without():
        assert sandbox.isolation() == "namespaces"
    with without("namespaces"):
        with pytest.warns(UserWarning, match="no namespaces here.*Landlock"):
            assert sandbox.run("print(1)").stdout == b"1\n"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert sandbox.isolation() == "landlock"


def test_without_any_isolation_nothing_is_run_unless_allowed() -> None:
    with without("namespaces", "landlock"):
        with pytest.raises(BadInput, match=r"no namespaces here; landlock: .*--allow-unsandboxed"):
            sandbox.run("print(1)")
        sandbox.allow_unsandboxed()
        assert sandbox.isolation() == "none"
        assert sandbox.run("print(1)").stdout == b"1\n"
