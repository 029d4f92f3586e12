from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gopd import sandbox, verify
from gopd.errors import BadInput
from gopd.verify import code, math
from gopd.verify._values import decode

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

ADD = json.dumps(
    {"fn_name": "add", "inputs": [[1, 2], [3, 4], [0, 0], [-1, 1], [10, 5]], "outputs": [3, 7, 0, 0, 15]}
)
ECHO = json.dumps({"inputs": ["1\n2\n", "5\n6\n"], "outputs": ["3\n", "11\n"]})


def fenced(program: str) -> str:
    return f"Think first.\n\n```python\n{program}\n```\nDone."


def returns(outputs: list[Any], program: str) -> bool:
    """Grades `f(i)` for i = 0, 1, ... against `outputs`."""
    truth = {"fn_name": "f", "inputs": [[i] for i in range(len(outputs))], "outputs": outputs}
    return code.grade(json.dumps(truth), fenced(program))


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"shared data absent: {name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_eurus_rows() -> None:
    for row in rows("eurus_code_sample.jsonl"):
        truth = row["reward_model"]["ground_truth"]
        verify.check_ground_truth("code", truth)
        assert code.grade(truth, fenced(row["solution"])) is (row["expected_fraction_passed"] == 1.0)


def test_apps_rows_accept_their_solutions_and_refuse_other_outputs() -> None:
    for row in rows("apps_sample.jsonl"):
        truth, solutions = (
            v if isinstance(v, dict | list) else json.loads(v)
            for v in (row["input_output"], row["solutions"])
        )
        assert code.grade(json.dumps(truth), fenced(solutions[0])), row["problem_id"]
        truth["outputs"][-1] = 424242 if "fn_name" in truth else "424242\n"
        assert not code.grade(json.dumps(truth), fenced(solutions[0])), row["problem_id"]


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("no code", None),
        ("```python\ncut off", None),
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\nbetter:\n```python\nb\n```\nshell:\n```bash\nc\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\noutput:\n```\n3\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("```python\nunfinished\n```python\nb\n```", "b\n"),
        ("Code: ```py\r\na\r\n  ```\r\n", "a\r\n"),
        ("```Python\ns = '''\x0c'''\n```", "s = '''\x0c'''\n"),
    ],
)
def test_last_finished_block(response: str, program: str | None) -> None:
    assert code.last_program(response) == program


def test_whole_programs() -> None:
    assert code.grade(ECHO, fenced("print(int(input()) + int(input()))"))
    assert not code.grade(ECHO, fenced("input(); input(); print(3)"))
    assert not code.grade(ECHO, fenced("print(int(input()) + int(input())); 1/0"))
    assert not code.grade(ECHO, "print(int(input()) + int(input()))")
    lines = json.dumps({"inputs": [["1", "2"]], "outputs": [["1", "2"]]})
    assert code.grade(lines, fenced("print(input()); print(input())"))


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("1 2\n3\n", " 1  2 \r\n\n3", True),
        ("1 2\n3\n", "1\n2 3\n", False),
        ("1\n2", "1", False),
        ("yes", "Yes", False),
        ("0.5", "0.50000001", True),
        ("0.5", "5e-1", True),
        ("0.5", ".5", True),
        ("0.5", "0.51", False),
        ("2.0", "2", True),
        ("5", "5.0", True),
        ("5", "5.1", False),
        ("007", "7", False),
        ("1000000007", "1000000008", False),
        ("1000000007", "1000000008.0", False),
        ("1.5", "nan", False),
        ("1.5", "1_.5", False),
        ("", "\n", True),
    ],
)
def test_printed_output(expected: str, printed: str, same: bool) -> None:
    assert code.same_output(expected, printed) is same


def test_whole_programs_stop_at_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _runs(monkeypatch, json.dumps({"inputs": ["1"] * 5, "outputs": ["2"] * 5}), "print(1)") == 1
    assert _runs(monkeypatch, json.dumps({"inputs": ["1"] * 5, "outputs": ["1"] * 5}), "print(1)") == 5


def test_all_calls_of_a_function_share_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _runs(monkeypatch, ADD, "def add(a, b): return a + b") == 1


def _runs(monkeypatch: pytest.MonkeyPatch, truth: str, program: str) -> int:
    count = 0

    def counted(*args: Any, **kwargs: Any) -> sandbox.Outcome:
        nonlocal count
        count += 1
        return run(*args, **kwargs)

    run = sandbox.run
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "run", counted)
        code.grade(truth, fenced(program))
    return count


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("def add(a, b): return a + b", True),
        ("class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b", True),
        ("from typing import *\ndef add(a: List[int], b: Optional[int]): return a + b", True),
        ("def add(a: List[int], b: Optional[int]): return gcd(0, a + b) if a + b > 0 else 0", True),
        ("print('[3]')\ndef add(a, b):\n    print('noise', flush=True)\n    return a + b", True),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\nadd = int.__add__",
            True,
        ),
        ("def add(a, b): return a - b", False),
        ("def sub(a, b): return a + b", False),
        ("def add(a): return a", False),
        ("def add(a, b): return {a, b}", False),
        ("def add(a, b): raise SystemExit", False),
        ("def add(a, b): return int(input())", False),
        ("def add(a, b:", False),
        ("class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()", False),
    ],
)
def test_functions(program: str, passes: bool) -> None:
    assert code.grade(ADD, fenced(program)) is passes


def test_an_endless_function_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "TRAINING", replace(code.TRAINING, calls=sandbox.Limits(seconds=1)))
    assert not code.grade(ADD, fenced("def add(a, b):\n    while True: pass"))


@pytest.mark.parametrize(
    ("outputs", "program", "passes"),
    [
        ([[0, 1]], "def f(i): return (0, 1)", True),
        ([[0, 1]], "def f(i): return [1, 0]", False),
        ([0.5, 1.5], "def f(i): return i + 0.5 + 1e-9", True),
        ([0.5, 1.5], "def f(i): return i + 0.51", False),
        ([10**30], "def f(i): return 10**30", True),
        ([10**30], "def f(i): return 10**30 + 1", False),
        ([0.5], "def f(i): return 10**400", False),
        ([{"a": [1, None]}], "def f(i): return {'a': [1, None]}", True),
        ([{"a": 1}], "def f(i): return {'a': 1, 'b': 2}", False),
        (["1"], "def f(i): return 1", False),
        ([[False], [True]], "def f(i): return bool(i)", True),
        ([[False], [True]], "def f(i): return [bool(i)]", True),
        ([[False], [True, True]], "def f(i): return False if i == 0 else [True, True]", False),
        ([None], "def f(i): pass", True),
    ],
)
def test_returned_values(outputs: list[Any], program: str, passes: bool) -> None:
    assert returns(outputs, program) is passes


def test_arguments_as_json_lines() -> None:
    truth = json.dumps(
        {"fn_name": "add", "inputs": ["[1, 2]\n[3]", '"a"\n"b"'], "outputs": ["[1, 2, 3]", '"ab"']}
    )
    assert code.grade(truth, fenced("class Solution:\n    def add(self, a, b): return a + b"))
    assert not code.grade(truth, fenced("class Solution:\n    def add(self, a, b): return b + a"))


def test_what_a_program_prints_cannot_pass_for_what_it_returns() -> None:
    """Writing the right value to every descriptor there is, but without the token, ends in failure."""
    forger = "import os\ndef f(i):\n    for d in range(3, 20):\n        try: os.write(d, b'7\\n')\n"
    forger += "        except OSError: pass\n    os._exit(0)"
    assert not returns([7], forger)
    assert not returns([7], "import os\nos.write(1, b'7\\n')\nprint(7)\nos._exit(0)")


def _answered(value: str, seconds: str = "0.0") -> str:
    """A program that takes the harness's token and channel from its frames and sends this as the result of a call."""
    return (
        "import os, sys\nframe = sys._getframe()\nwhile 'channel' not in frame.f_locals: frame = frame.f_back\n"
        "there = frame.f_locals\n"
        f"text = there['request']['token'] + ' {{\"value\": ' + {value} + ', \"seconds\": {seconds}}}\\n'\n"
        "os.write(there['channel'], text.encode())\nos._exit(0)"
    )


def test_what_a_program_sends_in_the_harness_name_is_data_like_any_other() -> None:
    """It passes only where it is the right value, and cannot make the grader raise or compute for long."""
    assert returns([7], _answered("'7'"))
    assert not returns([7], _answered("'8'"))
    assert not returns([7], _answered("'7'", seconds="1" + "0" * 400))
    assert not returns([7], _answered("'{\"complex\": [1' + '0' * 400 + ', 0]}'"))
    multiples = "','.join(str(k * (2**61 - 1)) for k in range(2000))"
    assert not returns([7], _answered(f"'{{\"set\": [' + {multiples} + ']}}'"))


def test_values_made_to_be_slow_are_refused() -> None:
    same = [{"int": hex(k * (2**61 - 1))} for k in range(101)]
    trees: list[Any] = [{"set": same}, {"frozenset": same}, {"dict": [[key, 0] for key in same]}]
    for tree in trees:
        with pytest.raises(ValueError, match="equal hash"):
            decode(tree)
    assert len(decode({"set": list(range(100_000))})) == 100_000


def test_a_value_much_longer_than_what_is_expected_is_not_read() -> None:
    problem = code.parse_ground_truth(json.dumps({"fn_name": "f", "inputs": [[0]], "outputs": [7]}))
    judged = code.judge(problem, fenced("def f(i): return [[]] * 100000"))
    assert judged.reason == "output-limit"


def test_expected_values_never_enter_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(program: str, *, stdin: bytes, limits: sandbox.Limits) -> sandbox.Outcome:
        seen.append(program.encode() + stdin)
        return sandbox.Outcome("ok", b"", b"", 0.0, 0)

    monkeypatch.setattr(sandbox, "run", watched)
    returns([424242], "def f(i): return 0")
    code.grade(json.dumps({"inputs": ["1"], "outputs": ["424242"]}), fenced("print(0)"))
    assert len(seen) == 2
    assert not any(b"424242" in text for text in seen)


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ("", "not JSON"),
        ("assert f(1) == 2", "not JSON"),
        ("[1]", "found list"),
        ('{"inputs": ["1"]}', "'outputs' is missing"),
        ('{"inputs": "1", "outputs": ["1"]}', "'inputs' is not a list"),
        ('{"inputs": ["1", "2"], "outputs": ["1"]}', "2 inputs but 1 outputs"),
        ('{"inputs": [], "outputs": []}', "no tests"),
        ('{"inputs": ["1", 2], "outputs": ["1", "2"]}', "test 1"),
        ('{"inputs": [[1]], "outputs": [1], "fn_name": "f()"}', "not the name of a function"),
        ('{"inputs": [1], "outputs": [1], "fn_name": "f"}', "test 0: arguments"),
        ('{"inputs": ["1 2"], "outputs": ["1"], "fn_name": "f"}', "not one JSON value per line"),
    ],
)
def test_malformed_ground_truth_names_the_problem(truth: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem.replace("(", r"\(")):
        verify.check_ground_truth("code", truth)
    with pytest.raises(BadInput):
        code.grade(truth, "no code")


def test_a_slow_problem_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = json.dumps({"inputs": ["1"] * 50, "outputs": ["1"] * 50})
    monkeypatch.setattr(code, "TRAINING", replace(code.TRAINING, all_runs=0.4))
    start = time.monotonic()
    assert not code.grade(truth, fenced("import time; time.sleep(0.2); print(1)"))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("source", "verifier"),
    [
        ("gsm8k", "math"),
        ("openai/gsm8k", "math"),
        ("math", "math"),
        ("math500", "math"),
        ("HuggingFaceH4/MATH-500", "math"),
        ("DeepMath-103K", "math"),
        ("aime24", "math"),
        ("hmmt25_feb", "math"),
        ("math_dapo", "math"),
        ("numina_olympiads", "math"),
        ("tiny/arithmetic", "math"),
        ("Eurus-2-RL-Data", "code"),
        ("taco", "code"),
        ("apps", "code"),
        ("codecontests", "code"),
        ("codeforces", "code"),
        ("livecodebench_v6", "code"),
        ("humanevalplus", "code"),
        ("mbpp", "code"),
        ("tiny/lists", "code"),
    ],
)
def test_verifier_of_known_sources(source: str, verifier: str) -> None:
    assert verify.verifier_for(source) == verifier


@pytest.mark.parametrize("source", ["poetry", "lists", "mathematica", ""])
def test_an_unknown_source_is_bad_input_with_the_mend(source: str) -> None:
    with pytest.raises(BadInput, match=r"gsm8k.*data\.verifier") as caught:
        verify.verifier_for(source)
    assert repr(source) in str(caught.value)


def test_grade_all_keeps_order_and_runs_programs_side_by_side() -> None:
    good, bad = fenced("def add(a, b): return a + b"), fenced("def add(a, b): return a * b")
    rewards = verify.grade_all(
        [
            ("code", ADD, bad),
            ("math", "72", r"\boxed{72}"),
            ("none", None, "hello"),
            ("code", ADD, good),
            ("math", "72", r"\boxed{27}"),
            ("none", "72", r"\boxed{72}"),
        ]
    )
    assert rewards == [0.0, 1.0, None, 1.0, 0.0, None]
    assert verify.grade_all([]) == []


def test_grade_all_uses_a_thread_per_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    barrier = threading.Barrier(3)

    def grade(*_: str) -> bool:
        barrier.wait(timeout=10)
        return True

    monkeypatch.setattr(code, "grade", grade)
    assert verify.grade_all([("code", ADD, response) for response in "abc"]) == [1.0] * 3


def test_grade_all_grades_equal_responses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def grade(truth: str, response: str) -> bool:
        seen.append(response)
        return response == "a"

    for module in (code, math):
        monkeypatch.setattr(module, "grade", grade)
    items: list[Any] = [("code", ADD, r) for r in "abab"] + [("math", "1", r) for r in "aabb"]
    assert verify.grade_all(items) == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert sorted(seen) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("verifier", ["math", "code"])
def test_a_missing_ground_truth_is_bad_input(verifier: Any) -> None:
    with pytest.raises(BadInput, match=f"{verifier} needs a ground truth"):
        verify.check_ground_truth(verifier, None)
    with pytest.raises(BadInput, match=f"{verifier} needs a ground truth"):
        verify.grade_all([(verifier, None, "x")])
    verify.check_ground_truth("none", None)


def test_importing_the_verifiers_is_light() -> None:
    script = "import sys, gopd.verify; print(sorted({'torch', 'sympy', 'math_verify', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
