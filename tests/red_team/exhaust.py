"""Using up: processors, memory, disk, descriptors, processes, the caller's patience. No bomb here is large."""

from __future__ import annotations

from red_team.attack import ANY, ENDED, STOPPED, Attack, attempts


def _bomb(
    name: str,
    tries: str,
    source: str,
    ends: frozenset[str] = STOPPED,
    cpu_seconds: int = 1,
    seconds: float = 15.0,
) -> Attack:
    return Attack(name, "exhaust", tries, source, "run", ends, seconds, cpu_seconds)


def _sleeper(name: str, tries: str, source: str) -> Attack:
    return Attack(name, "exhaust", tries, source, "run", frozenset({"timeout"}), 0.5, 5)


ATTACKS = [
    _bomb(
        "fork-bomb",
        "forks by every call there is, from threads too",
        "import threading\ndef bomb():\n    for fork in (os.fork, lambda: call(57), lambda: call(56, 17, 0, "
        "0, 0, 0)):\n"
        "        for _ in range(3):\n            try: child = fork()\n            except OSError: continue\n"
        "            if child == 0: os._exit(0)\n            print('got-through', child, flush=True)\n"
        "threads = [threading.Thread(target=bomb) for _ in range(4)]\n[t.start() for t in threads]\n"
        "[t.join() for t in threads]\nprint('tried')",
        ENDED,
    ),
    _bomb(
        "threads",
        "starts two hundred sleeping threads and leaves them",
        "import threading, time\nthreading.stack_size(65536)\nfor _ in range(200):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint('tried', "
        "flush=True)\nos._exit(0)",
        ANY,
    ),
    _bomb(
        "threads-that-spin",
        "spins in eight threads, so that a clock for one of them would be too slow",
        "import hashlib, threading\ndef spin():\n    while True: hashlib.sha256(bytes(1 << 20))\n"
        "for _ in range(8): threading.Thread(target=spin).start()",
    ),
    _bomb(
        "anonymous-memory",
        "maps and touches memory without end",
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24))",
    ),
    _bomb(
        "memory-in-hiding",
        "catches each MemoryError and asks for half as much, holding all it got",
        "x, n = [], 1 << 30\nwhile n:\n    try: x.append(bytes(n))\n    except MemoryError: n //= 2\n"
        "print('tried', flush=True)\nos._exit(0)",
        ANY,
    ),
    _bomb(
        "power-tower",
        "computes an integer of a hundred million digits",
        "x = 10 ** 10 ** 8\nprint(len(str(x)))",
    ),
    _bomb("doubling-text", "doubles a text for ever", "x = 'ab'\nwhile True: x = x.replace('a', 'aa')"),
    _bomb(
        "one-file",
        "writes one file without end",
        "with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
    ),
    _bomb(
        "sparse-file",
        "makes a sparse file of a terabyte",
        "try:\n    with open('big', 'wb') as f: f.truncate(1 << 40)\nexcept OSError: print('tried')\nelse: "
        "print('got-through')",
        ENDED,
    ),
    _bomb(
        "many-files",
        "makes thousands of empty files, links and folders",
        "for i in range(1000):\n    open(f'f{i}', 'w').close(); os.mkdir(f'd{i}'); os.symlink('x' * 100, "
        "f'l{i}')\nprint('tried')",
        ENDED,
        4,
    ),
    _bomb(
        "deep-folders",
        "nests folders without permissions, with names of 255 bytes",
        "for _ in range(300): os.mkdir('n' * 255, 0o700); os.chdir('n' * 255)\nos.mkdir('locked', 0)\nprint('tried')",
        ENDED,
    ),
    _bomb(
        "descriptors",
        "opens descriptors of every kind until there are no more, and asks for a higher limit",
        "import resource, select\nkept = []\ntry: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); "
        "print('got-through')\n"
        "except (OSError, ValueError): pass\nfor make in (os.pipe, select.epoll, lambda: open('x', 'w'), "
        "lambda: os.dup(1)):\n"
        "    try:\n        while True: kept.append(make())\n    except OSError: pass\n"
        "os.write(1, b'got-through' if len(kept) > 64 else b'tried'); os._exit(0)",
        ENDED,
    ),
    _bomb(
        "pipes",
        "fills pipes of a megabyte each, which no limit of memory counts",
        "import fcntl\nfor _ in range(20):\n    r, w = os.pipe()\n    try: fcntl.fcntl(w, 1031, 1 << 20); "
        "print('got-through')\n"
        "    except OSError: pass\nprint('tried')",
        ENDED,
    ),
    _bomb(
        "input-grown",
        "grows its standard input, a file in memory, past every limit",
        "try:\n    while os.write(0, bytes(1 << 20)): pass\nexcept OSError: pass\nsize = os.fstat(0).st_size\n"
        "print('got-through' if size > 1 << 25 else 'tried')",
        ANY,
    ),
    _bomb(
        "flood",
        "floods output and error from two threads at once",
        "import threading\ndef flood(f):\n    while True: os.write(f, bytes(65536))\n"
        "for f in (1, 2): threading.Thread(target=flood, args=(f,)).start()",
        frozenset({"output-limit"}),
        5,
    ),
    _bomb(
        "drip",
        "writes one byte at a time, a million of them",
        "for _ in range(1000000): os.write(1, b'x')\nprint('tried')",
        ANY,
    ),
    _bomb(
        "traceback",
        "raises an error whose message has a hundred megabytes, out of a chain of a thousand",
        "error = None\nfor i in range(1000):\n    new = ValueError(i); new.__cause__ = error; error = new\n"
        "raise ValueError('x' * 50_000_000) from error",
        STOPPED,
        4,
    ),
    _bomb(
        "regex", "matches an expression that backtracks for ever", "import re\nre.match(r'(a|a)*b', 'a' * 60)"
    ),
    _bomb(
        "slow-in-c",
        "stays inside one call of C code, where no Python handler runs",
        "sum(range(10 ** 12))",
    ),
    _bomb(
        "limits",
        "raises its limits, by each call",
        "import resource\nfor kind in range(16):\n    try: hard = resource.getrlimit(kind)[1]\n    except "
        "(OSError, ValueError): continue\n"
        "    if hard == -1: continue\n"
        "    for wanted in (hard + 1, -1):\n        try: resource.setrlimit(kind, (hard, wanted)); "
        "print('got-through', kind)\n"
        "        except (OSError, ValueError): pass\nprint('tried')",
        ENDED,
    ),
    _bomb(
        "recursion",
        "recurses in C until the stack is full",
        "sys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(300000): x = [x]\nrepr(x)",
        STOPPED,
        5,
    ),
    _bomb(
        "signals-ignored",
        "ignores every signal and blocks them, then spins",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nfor s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    ),
    _sleeper(
        "sleeper",
        "sleeps with all its descriptors closed",
        "os.closerange(0, 64)\nimport time\ntime.sleep(60)",
    ),
    _sleeper("stopped", "stops itself", "os.kill(os.getpid(), 19)\nimport time\ntime.sleep(60)"),
    _sleeper(
        "deadlock",
        "waits for a lock that it holds, in the main thread and at exit",
        "import threading\nlock = threading.Lock(); "
        "lock.acquire()\nthreading.Thread(target=lock.acquire).start()\nlock.acquire()",
    ),
    _sleeper(
        "exit-that-never-comes",
        "leaves, but a handler at exit and a thread never let it",
        "import atexit, signal, time\nsignal.alarm(0)\natexit.register(time.sleep, 60)\nsys.exit(0)",
    ),
    attempts(
        "machine-wide",
        "exhaust",
        "asks for what slows or empties the whole machine",
        sync="call(162)",
        syncfs="call(306, 0)",
        swap="call(168, b'/swapfile')",
        memory="call(319, b'x', 0)",
        segment="call(29, 0, 1 << 24, 0o1600)",
        semaphores="call(64, 0, 200, 0o1600)",
        queue="call(240, b'$mark', 0o102, 0o600, 0)",
        realtime="os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        nice="os.nice(-5)",
    ),
]
