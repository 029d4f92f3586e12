"""Reading what a program must not know: expectations, secrets of the caller, files and memory of the machine."""

from __future__ import annotations

from red_team.attack import ANY, Attack, attempts

_SPY = """
import gc, os, sys, traceback
def everything():
    frame = sys._getframe()
    while frame is not None:
        yield from frame.f_locals.values()
        frame = frame.f_back
    yield from gc.get_objects()
    yield from (os.environ, sys.argv, sys.orig_argv)
"""

ATTACKS = [
    attempts(
        "path",
        "read",
        "opens the caller's secret file by its path, by links and by way of /proc",
        f1="open('$secret_file').read()",
        f2="(os.symlink('$secret_file', 'link'), open('link').read())",
        f3="(os.link('$secret_file', 'hard'), open('hard').read())",
        f4="open('/proc/self/root$secret_file').read()",
        f5="open('/proc/self/cwd/../../..$secret_file').read()",
        f6="open('/proc/$caller/root$secret_file').read()",
        f7="open('/proc/$caller/cwd/pyproject.toml').read()",
    ),
    attempts(
        "handle-without-reading",
        "read",
        "opens the file as a mere place, then tries to make a readable file of it",
        "def place(): return os.open('$secret_file', os.O_PATH)",
        reopened="open(f'/proc/self/fd/{place()}').read()",
        executed="os.execve(place(), ['x'], {})",
        handle="call(303, -100, b'$secret_file', ctypes.create_string_buffer(b'\\x80' + bytes(160)), "
        "ctypes.create_string_buffer(8), 0)",
        by_handle="call(304, 0, ctypes.create_string_buffer(64), 0)",
    ),
    attempts(
        "attributes",
        "read",
        "reads an extended attribute of the caller's file, which needs no open file",
        get="os.getxattr('$secret_file', 'user.secret')",
        names="os.listxattr('$secret_file')",
    ),
    attempts(
        "caller",
        "read",
        "reads the caller's environment, command line, memory, stack and open files",
        environ="open('/proc/$caller/environ', 'rb').read()",
        cmdline="open('/proc/$caller/cmdline', 'rb').read()",
        memory="open('/proc/$caller/mem', 'rb')",
        maps="open('/proc/$caller/maps').read()",
        stack="open('/proc/$caller/stack').read()",
        parent="open(f'/proc/{os.getppid()}/environ', 'rb').read()",
        vm="call(310, $caller, ctypes.create_string_buffer(16), 1, ctypes.create_string_buffer(16), 1, 0)",
        trace="call(101, 16, $caller, 0, 0)",
        pidfd="call(434, $caller, 0)",
    ),
    attempts(
        "caller-descriptors",
        "read",
        "opens each of the caller's first descriptors through /proc",
        **{f"d{number}": f"open('/proc/$caller/fd/{number}', 'rb').read(1)" for number in range(0, 40)},
    ),
    Attack(
        "inherited-descriptors",
        "read",
        "reads from and writes to all descriptors above the standard ones",
        "for d in range(3, 1024):\n    try: os.fstat(d)\n    except OSError: continue\n    print('got-through', d)\n"
        "print('tried')",
    ),
    attempts(
        "own-memory-file",
        "read",
        "opens its own memory, maps and start-up data, and those of the first process, through /proc",
        mem="open('/proc/self/mem', 'r+b')",
        maps="open('/proc/self/maps').read()",
        auxv="open('/proc/self/auxv', 'rb').read()",
        first="open('/proc/1/environ', 'rb').read()",
        thread="open('/proc/thread-self/environ', 'rb').read()",
        mounts="open('/proc/self/mountinfo').read()",
    ),
    attempts(
        "mount-table",
        "read",
        "asks for the machine's mounts by the new calls that need no /proc",
        "import struct\nmask = struct.pack('=IIQQQ', 32, 0, 2**64 - 1, 0, 0)",
        listmount="call(458, mask, ctypes.create_string_buffer(800), 100, 0)",
        statmount="call(457, mask, ctypes.create_string_buffer(8000), 8000, 0)",
    ),
    attempts(
        "watch",
        "read",
        "watches the caller's folder, to learn the names of the files in it",
        watch="call(254, call(294, 0), b'$folder', 0xfff)",
        old="call(254, call(253), b'$folder', 0xfff)",
        all="call(300, 0x200, 0)",
    ),
    attempts(
        "segments",
        "read",
        "attaches to, asks about and takes from the caller's System V memory, queue and semaphores",
        attach="call(30, $shm, 0, 0o10000)",
        stat="call(31, $shm, 2, ctypes.create_string_buffer(256))",
        take="call(70, $msg, ctypes.create_string_buffer(128), 64, 0, 0o4000)",
        value="call(66, $sem, 0, 12, 0)",
        by_key="call(29, $shm_key, 0, 0)",
        file="open('/dev/shm/$mark').read()",
    ),
    attempts(
        "keys",
        "read",
        "reads the caller's session keyring",
        session="call(250, 11, -3, ctypes.create_string_buffer(256), 256, 0)",
        find="call(249, b'user', b'red-team', 0, 0)",
        proc="open('/proc/keys').read()",
    ),
    attempts(
        "package",
        "read",
        "imports the grader, and reads it and the tests where they are",
        grader="__import__('gopd.verify.code')",
        pytest="__import__('pytest')",
        source="open('$package/__init__.py').read()",
        data="open('$package/tiny/train.parquet', 'rb').read()",
        tests="os.listdir('$tests')",
    ),
    attempts(
        "configuration",
        "read",
        "reads accounts, keys and tokens where machines keep them",
        passwd="open('/etc/passwd').read()",
        shadow="open('/etc/shadow').read()",
        home="open('$home/.bashrc').read()",
        ssh="os.listdir('$home/.ssh')",
        var="os.listdir('/var')",
        run="os.listdir('/run')",
        sys="os.listdir('/sys')",
    ),
    Attack(
        "spied-program",
        "read",
        "prints all that the interpreter holds: frames, collected objects, arguments, environment",
        _SPY + "for item in everything():\n    try: print(repr(item)[:20000])\n    except Exception: pass\n"
        "print('tried')",
        prelude=False,
    ),
    Attack(
        "spied-harness",
        "read",
        "the same while it is called as a function, when the harness and its request are in memory",
        _SPY
        + "def f(i):\n    text = '\\n'.join(repr(item)[:20000] for item in everything() if isinstance(item, "
        "(str, dict, list, bytes)))\n    return text[:1000000]",
        "function",
        frozenset({"wrong", "error", "output-limit", "timeout"}),
        memory_bytes=1 << 29,
        prelude=False,
    ),
    Attack(
        "traceback",
        "read",
        "raises, and prints the locals of every frame on the way",
        "import sys, traceback\ntry: 1 / 0\nexcept ZeroDivisionError as error:\n"
        "    print(*traceback.TracebackException.from_exception(error, capture_locals=True).format())\n"
        "    frame = error.__traceback__.tb_frame\n    while frame: print(frame.f_locals, frame.f_globals); "
        "frame = frame.f_back\nprint('tried')",
        prelude=False,
    ),
    Attack(
        "own-image",
        "read",
        "scans its own heap and stack for the caller's secret",
        "import re\nx = bytearray(64)\nhere = ctypes.addressof(ctypes.c_char.from_buffer(x))\n"
        "near = ctypes.string_at(here - here % 4096, 4096)\nprint(re.findall(rb'[ -~]{8,}', near))\n"
        "print(re.findall(rb'[ -~]{8,}', ctypes.string_at(id(sys.argv) - id(sys.argv) % 4096, 4096)))\nprint('tried')",
        ends=ANY,
    ),
    attempts(
        "neighbours",
        "read",
        "lists the folders in which other programs run, and looks into one",
        outside="open('/tmp/../$mark-x').read()",
        temporary="os.listdir('$temporary')",
        neighbour="open('$temporary/neighbour/answer').read()",
    ),
]
