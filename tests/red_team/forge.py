"""Forging verdicts: the tests want `f(0)`, a decimal, `f(1)` and `f(2)` to be numbers that only the grader knows."""

from __future__ import annotations

from red_team.attack import NOT_RIGHT, STOPPED, Attack

_HARNESS = """
import os, sys
frame = sys._getframe()
while "channel" not in frame.f_locals:
    frame = frame.f_back
request, channel = frame.f_locals["request"], frame.f_locals["channel"]
def send(*texts):
    data = "".join(f"{request['token']} {text}\\n" for text in texts).encode()
    while data:
        data = data[os.write(channel, data):]
def value(json, seconds="0.0"):
    return '{"value": %s, "seconds": %s}' % (json, seconds)
"""


def _function(name: str, tries: str, source: str, ends: frozenset[str] = NOT_RIGHT) -> Attack:
    return Attack(name, "forge", tries, source, "function", ends, 5.0, 1, prelude=False)


def _harness(name: str, tries: str, source: str) -> Attack:
    return _function(name, tries, _HARNESS + source)


def _program(name: str, tries: str, source: str) -> Attack:
    return Attack(name, "forge", tries, source, "program", NOT_RIGHT, 5.0, 1, prelude=False)


_LIES = """
class Lie({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __sub__(self, other): return 0
    __rsub__ = __sub__
    def __abs__(self): return 0
def f(i): return Lie({argument})
"""

ATTACKS = [
    _harness(
        "token",
        "finds the harness in the frames, takes token and channel, sends values of its own for all calls",
        "send(*[value(0)] * 3)\nos._exit(0)",
    ),
    _harness(
        "error-as-success",
        "sends lines with an error and a value at once, and other half truths",
        'send(\'{"value": 0, "seconds": 0, "error": null}\', \'{"passed": true}\', "true", \'"right"\')\nos._exit(0)',
    ),
    _harness(
        "digest",
        "sends digests, which no call asked for, of every shape",
        'send(*[\'{"digest": %s, "seconds": 0}\' % d for d in (\'"0"\', "[]", "null")])\nos._exit(0)',
    ),
    _harness(
        "seconds-beyond-floats",
        "sends a duration that no float holds, so that the grader raises",
        'send(value(0, "1" + "0" * 400))\nos._exit(0)',
    ),
    _harness(
        "complex-beyond-floats",
        "sends a complex number that no two floats hold",
        'send(value(\'{"complex": [1%s, 0]}\' % ("0" * 400)))\nos._exit(0)',
    ),
    _harness(
        "equal-hashes",
        "sends a set of numbers of one hash, which takes the grader minutes to build",
        'send(value(\'{"set": [%s]}\' % ",".join(str(k * (2**61 - 1)) for k in range(150000))))\nos._exit(0)',
    ),
    _harness(
        "equal-hashes-as-keys",
        "the same as keys of a dictionary, tuples this time",
        "pairs = ','.join('[{\"tuple\": [%d]}, 0]' % (k * (2**61 - 1)) for k in range(100000))\n"
        "send(value('{\"dict\": [%s]}' % pairs))\nos._exit(0)",
    ),
    _harness(
        "deep-json",
        "sends a value nested so deeply that reading it overflows the stack",
        'send(value("[" * 1000000 + "]" * 1000000))\nos._exit(0)',
    ),
    _harness(
        "deep-tree",
        "sends tuples in tuples, deeper than the reader may recurse",
        'send(value(\'{"tuple": [\' * 900 + "]}" * 900))\nos._exit(0)',
    ),
    _harness(
        "many-empties",
        "sends a million empty lists, forty bytes of memory for each byte sent",
        'send(value("[" + ",".join(["[]"] * 1300000) + "]"))\nos._exit(0)',
    ),
    _harness(
        "late-lines",
        "a thread that goes on sending values after the last call",
        "import threading\ndef late():\n    while True: send(value(0))\n"
        "threading.Thread(target=late, daemon=True).start()\ndef f(i): return 0",
    ),
    _harness(
        "early-lines",
        "sends its values before the first call is made, then lets the harness go on",
        "send(value(1), value(2), value(3))\ndef f(i): return 0",
    ),
    _harness(
        "rewritten-request",
        "empties the harness's list of calls, so that there is nothing to get wrong",
        'request["calls"].clear(); request["seconds"].clear()\ndef f(i): return 0',
    ),
    _harness(
        "other-token",
        "changes the token that the harness sends",
        'request["token"] = "0" * 32\ndef f(i): return 0',
    ),
    _harness(
        "collected-objects",
        "walks the collector and all frames for numbers that could be what is expected, and sends those",
        "import gc\nfound = [n for o in gc.get_objects() if isinstance(o, (list, tuple, dict))\n"
        "         for n in (o.values() if isinstance(o, dict) else o) if type(n) is int and n > 2**40]\n"
        "found += [v for v in request.values() if isinstance(v, int)]\n"
        "send(*[value(n) for n in (found + [0, 0, 0])[:3]])\nos._exit(0)",
    ),
    *(
        _function(
            f"lying-{base}",
            f"returns a subclass of {base} that says it equals everything",
            _LIES.format(base=base, argument=argument),
        )
        for base, argument in (
            ("object", ""),
            ("int", "5"),
            ("float", "5"),
            ("str", "'5'"),
            ("list", "[5]"),
            ("dict", ""),
            ("frozenset", ""),
        )
    ),
    _function(
        "lying-class",
        "returns an object whose __class__ says that it is a bool, with a __reduce__ that would run a program",
        "import os\nclass Lie:\n    __class__ = bool\n    def __reduce__(self): return os.system, ('touch $mark',)\n"
        "def f(i): return Lie()",
    ),
    _function(
        "nan", "returns NaN, for which every comparison can be got wrong", "def f(i): return float('nan')"
    ),
    _function(
        "integer-beyond-floats",
        "returns an integer that no float holds where a decimal is expected, so that the grader raises",
        "def f(i): return 10 ** 400",
    ),
    _function(
        "million-digits",
        "returns an integer whose digits take minutes to write or to read",
        "def f(i): return 7 ** (1 << 22)",
    ),
    _function(
        "generator", "returns a generator, a coroutine, a function", "def f(i):\n    yield from range(9)"
    ),
    _function(
        "patched-json",
        "replaces json.dumps, json.load and the encoder by ones that write what it likes",
        'import json, sys\njson.dumps = lambda *a, **k: \'{"value": true, "seconds": 0}\'\n'
        "vars(sys.modules['__main__'])['encode'] = lambda value: True\ndef f(i): return 0",
    ),
    _function(
        "patched-builtins",
        "replaces isinstance, type, len and zip in builtins before the harness uses them again",
        "import builtins\nfor name in ('isinstance', 'len', 'zip', 'iter', 'hash', 'float', 'int'):\n"
        "    setattr(builtins, name, lambda *a: True)\ndef f(i): return 0",
    ),
    _function(
        "tracing",
        "traces the harness's own frames and changes what they return",
        "import sys\ndef tracer(frame, event, argument):\n    frame.f_trace_opcodes = True\n    return tracer\n"
        "sys.settrace(tracer); sys.setprofile(tracer)\nf = lambda i: True",
    ),
    _function(
        "audit-hook",
        "an audit hook that ends the process well at the first thing the harness does",
        "import os, sys\ndef f(i):\n    sys.addaudithook(lambda *a: os._exit(0))\n    return 0",
    ),
    _function(
        "printed-and-left",
        "prints what a right answer could look like on every descriptor and leaves with 0",
        "import os\nfor d in range(256):\n    try: os.write(d, b'1\\n{\"value\": 1}\\nok\\nAll tests passed\\n')\n"
        "    except OSError: pass\nos._exit(0)",
    ),
    _function(
        "exit-handlers",
        "leaves by SystemExit(0), with handlers at exit and finalizers that print",
        "import atexit, sys\nclass D:\n    def __del__(self): print('All tests passed')\nd = D()\n"
        "atexit.register(print, 'ok')\nsys.exit(0)",
    ),
    _function(
        "timer-off",
        "takes its own timer off, ignores all signals and computes for ever",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nsignal.setitimer(signal.ITIMER_PROF, 0)\n"
        "def f(i):\n    while True: pass",
        STOPPED,
    ),
    _function(
        "endless-list",
        "returns a list whose iteration never ends",
        "class Endless(list):\n    def __iter__(self):\n        while True: yield 0\ndef f(i): return Endless([1])",
    ),
    _function(
        "self-containing",
        "returns a list that holds itself",
        "def f(i):\n    x = []; x.append(x); return x",
    ),
    _function(
        "attribute-lies",
        "a Solution whose dir, getattr and metaclass answer everything",
        "class Meta(type):\n    def __dir__(c): return ['f']\n    def __getattr__(c, n): return lambda *a: c\n"
        "class Solution(metaclass=Meta):\n    def __getattr__(self, n): return lambda *a: self",
    ),
    _program(
        "reading-on",
        "reads on after the end of its input, seeks back and forth, and prints all it finds",
        "import os\nprint(os.read(0, 1 << 20)); print(os.lseek(0, 0, 2)); os.lseek(0, 0, 0); "
        "print(os.read(0, 1 << 20))",
    ),
    _program(
        "input-rewritten",
        "writes into its own standard input, which is a file, for the next run to find",
        "import os\ntry: os.pwrite(0, b'x' * 4096, 0); os.ftruncate(0, 1 << 20)\nexcept OSError: pass\nprint(input())",
    ),
    _program(
        "line-separators",
        "prints characters that other programs take for ends of lines, and broken UTF-8",
        "import os\nos.write(1, '\\u2028\\x0b\\x85\\x1c1\\r2'.encode() + b'\\xff\\xfe\\0')",
    ),
    _program(
        "many-lines",
        "prints two million short lines, which cost the grader much more when it splits them",
        "print('a\\n' * 2000000)",
    ),
    _program(
        "signal-after-output",
        "prints, then ends itself by the signals and codes that stand for other reasons",
        "import os\nprint('1', flush=True)\nos._exit(152)",
    ),
]
