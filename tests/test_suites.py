"""Rows of the suites become problems: the real files, the formats, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from gopd.errors import BadInput, RunFailed
from gopd.evaluate import evalplus_suites, tasks
from gopd.evaluate.problem import Problem, Reading
from gopd.evaluate.tasks import TASKS, load, tasks_named

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def nothing(done: int, total: int) -> None:
    pass


def read(name: str, data: Path, **reading: Any) -> list[Problem]:
    return load(TASKS[name], data, Reading(**reading), nothing)


def needs(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"shared data absent: {name}")
    return DATA


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gopd"


@pytest.mark.parametrize(
    ("name", "count", "file"),
    [
        ("aime24", 30, "aime24.jsonl"),
        ("aime25", 30, "aime25.jsonl"),
        ("hmmt25_feb", 30, "hmmt25_feb.jsonl"),
        ("hmmt25_nov", 30, "hmmt25_nov.jsonl"),
        ("math500", 500, "math500.jsonl"),
        ("gsm8k", 1319, "gsm8k_test.jsonl"),
    ],
)
def test_every_gold_of_the_mathematical_suites_passes_and_a_changed_one_does_not(
    name: str, count: int, file: str
) -> None:
    problems = read(name, needs(file))
    assert len(problems) == len({problem.id for problem in problems}) == count
    rows = [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]
    step = 1 if count < 100 else 10
    for problem, row in list(zip(problems, rows, strict=True))[::step]:
        gold = str(row["answer"]).rpartition("####")[2].strip()
        assert problem.judge(f"So \\boxed{{{gold}}}.").right, problem.id
        assert not problem.judge(f"So \\boxed{{{gold}+1}}.").right, problem.id
        assert not problem.judge(gold).right
        assert problem.text.endswith("put your final answer within \\boxed{}.")


def test_an_evident_error_of_a_gold_is_mended_unless_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("gopd.verify.math.judge", lambda gold, response: seen.append(gold))
    for golds in ("corrected", "as-published"):
        problems = {p.id: p for p in read("hmmt25_nov", needs("hmmt25_nov.jsonl"), golds=golds)}
        problems["20"].judge("")
    assert seen == [r"\frac{\sqrt{7} + 1}{2}", r"\frac{sqrt{7} + 1}{2}"]


SOLUTIONS = {
    "syn_a": ("import sys\nn, *a = map(int, open(0).read().split())\nprint(sum(a))", "print(0)"),
    "syn_b": (
        "class Solution:\n    def add(self, a, b): return a + b",
        "class Solution:\n    def add(self, a, b): return b",
    ),
}


@pytest.mark.parametrize("compat", [False, True])
def test_livecodebench_rows(compat: bool) -> None:
    problems = read(
        "livecodebench_v6", needs("lcb_synthetic.jsonl") / "lcb_synthetic.jsonl", lcb_compat=compat
    )
    assert [problem.id for problem in problems] == list(SOLUTIONS)
    for problem in problems:
        right, wrong = (f"```python\n{program}\n```" for program in SOLUTIONS[problem.id])
        assert problem.judge(right).right
        assert problem.judge(wrong).reason == "wrong"
    assert "def add(self, a: int, b: int) -> int:" in problems[1].text
    assert "stdin" in problems[0].text
    assert "stdin" not in problems[1].text


@pytest.mark.parametrize(
    "way",
    ["sys.stdin.buffer.read()", "open(0, 'rb').read()", "b''.join(iter(sys.stdin.buffer.readline, b''))"],
)
def test_whole_programs_read_standard_input_in_every_way(way: str) -> None:
    problem = read("livecodebench_v6", needs("lcb_synthetic.jsonl") / "lcb_synthetic.jsonl")[0]
    program = f"import sys\nN = 0\ndef main():\n    global N\n    N, *a = map(int, {way}.split())\n    print(sum(a))\n"
    assert problem.judge(f"```python\n{program}if __name__ == '__main__':\n    main()\n```").right
    lines = "import sys\ndef rows():\n    yield from sys.stdin\nlines = rows()\nnext(lines)\n"
    lines += "print(sum(map(int, next(lines).split())))"
    assert problem.judge(f"```python\n{lines}\n```").right


def lcb_row(tmp_path: Path, **changes: Any) -> Path:
    test = [{"input": "1\n", "output": "0.5 x\n\n7\n", "testtype": "stdin"}]
    row = {
        **{"question_id": "q", "question_content": "Do.", "starter_code": "", "metadata": "{}"},
        **{"public_test_cases": json.dumps(test), "private_test_cases": "[]"},
    }
    path = tmp_path / "test6.jsonl"
    path.write_text(json.dumps(row | changes) + "\n")
    return path


def test_where_the_reference_grader_decides_otherwise(tmp_path: Path) -> None:
    path = lcb_row(tmp_path)
    ours, reference = (read("livecodebench_v6", path, lcb_compat=compat)[0] for compat in (False, True))
    for program, by_us, by_reference in (
        ("print('0.5 x'); print(); print(7)", True, True),
        ("print('0.5 x'); print(7)", True, False),  # the blank line
        (
            "print('0.5000000001 x'); print(); print(7)",
            True,
            False,
        ),  # words that are no numbers: no decimals either
        ("print('0.5 x'); print(); print('7.0')", True, True),
        ("print('0.5 x'); print(); print(gcd(7, 14))", False, True),  # everything is imported there
        ("print('0.5 x'); print(); print(8)", False, False),
    ):
        response = f"```python\n{program}\n```"
        assert ours.judge(response).right is by_us, program
        assert reference.judge(response).right is by_reference, program
    text = "```python\nprint('0.5 x'); print(); print(7)\n```\n```\noutput\n```"
    assert (ours.judge(text).right, reference.judge(text).right) == (True, False)


def test_private_tests_are_read_without_running_anything(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    def packed(value: Any) -> str:
        return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()

    tests = json.dumps([{"input": "2\n", "output": "3\n", "testtype": "stdin"}])
    (problem,) = read("livecodebench_v6", lcb_row(tmp_path, private_test_cases=packed(tests)))
    program = "print('0.5 x\\n\\n7' if input() == '1' else 3)"
    assert problem.judge(f"```python\n{program}\n```").right
    assert not problem.judge("```python\nprint('0.5 x\\n\\n7')\n```").right
    for bad, reason in (
        (packed(Bomb()), "names pathlib"),
        ("!!", "cannot be read"),
        (base64.b64encode(b"x").decode(), "cannot be read"),
        (packed('{"a": 1}'), "not a list of tests"),
    ):
        with pytest.raises(BadInput, match=f"test6.jsonl:1.*private_test_cases.*{reason}"):
            read("livecodebench_v6", lcb_row(tmp_path, private_test_cases=bad))
    assert not (tmp_path / "exploded").exists()


HARD = (
    *(
        "HumanEval/32",
        "HumanEval/38",
        "HumanEval/44",
    ),  # any root of a polynomial; a code and its inverse; huge numbers
    *("Mbpp/124", "Mbpp/252", "Mbpp/722", "Mbpp/580"),  # complex numbers, dictionaries, nested tuples
    *("Mbpp/255", "Mbpp/581", "Mbpp/558"),  # a gigabyte of results; two readings of the task
)


@pytest.mark.parametrize(
    ("suite", "file"),
    [
        ("humaneval+", "HumanEvalPlus.jsonl.gz"),
        pytest.param("mbpp+", "MbppPlus.jsonl.gz", marks=pytest.mark.nightly),
    ],
)
def test_canonical_solutions_pass_and_others_do_not(
    suite: str, file: str, tmp_path: Path, cache: Path
) -> None:
    """The hard ones and every twentieth; `experiments/graders` holds the figures of all."""
    with gzip.open(needs(file) / file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for i, row in enumerate(rows) if row["task_id"] in HARD or i % 20 == 0]
    (tmp_path / file.removesuffix(".gz")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = read(suite, tmp_path)
    kept = sum(path.stat().st_size for path in cache.rglob("*.gz"))
    assert kept < 2_000_000
    for row, problem in zip(rows, problems, strict=True):
        solution = row["prompt"] + row["canonical_solution"]
        found = problem.judge(f"```python\n{solution}\n```")
        assert (found.reason, found.base) == ("right", True), problem.id
        broken = f"{solution}\ndef {row['entry_point']}(*_): return None"
        assert problem.judge(f"```python\n{broken}\n```").reason == "wrong", problem.id
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.gz")}
    read(suite, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.gz")} == before


def test_a_canonical_solution_that_fails_is_not_taken_for_the_truth(tmp_path: Path) -> None:
    row = {
        **{"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return 1 / x\n"},
        **{"entry_point": "f", "base_input": [[0]], "plus_input": [], "atol": 0},
    }
    (tmp_path / "HumanEvalPlus.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        RunFailed, match=r"HumanEvalPlus.jsonl:1: the canonical solution itself fails here \(error\)"
    ):
        read("humaneval+", tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("aime2", "no task 'aime2'; did you mean aime25"),
        ("gsm8k,poetry", "no task 'poetry'; there are aime24"),
        (" , ", "no tasks are named; there are aime24"),
    ],
)
def test_unknown_tasks(names: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tasks_named(names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer": "1"}', r"aime24.jsonl:1: has no problem or question; its columns are answer"),
        ('{"problem": "p", "answer": null}', r"aime24.jsonl:1: has no answer"),
        ('{"problem": "p", "answer": ""}', r"aime24.jsonl:1: math ground truth '' holds no answer"),
        ("[1]", r"aime24.jsonl:1: found list"),
        ("{", r"aime24.jsonl:1: not JSON"),
        ('{"id": 1, "problem": "p", "answer": "1"}\n' * 2, "two problems have the id '1'"),
    ],
)
def test_malformed_rows_name_their_place(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "aime24.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=message):
        read("aime24", tmp_path)


def test_data_that_is_not_there_says_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"holds none of aime24.jsonl, aime24.jsonl.gz, aime24.parquet"):
        read("aime24", tmp_path)
    with pytest.raises(BadInput, match="is no folder or file"):
        read("aime24", tmp_path / "missing")

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr("datasets.load_dataset", offline)
    for name, file in (
        ("humaneval+", "HumanEvalPlus.jsonl.gz"),
        ("livecodebench_v6", "livecodebench_v6.jsonl"),
        ("aime24", "aime24.jsonl"),
    ):
        with pytest.raises(BadInput, match=f"task .*no route to host.* as {file}, .* by --data FOLDER"):
            load(TASKS[name], None, Reading(), nothing)


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "served.gz"
    row = {
        **{"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n"},
        **{"entry_point": "f", "base_input": [[0]], "plus_input": [[2]], "atol": 0},
    }
    source.write_bytes(gzip.compress(json.dumps(row).encode()))
    opened = []
    real = tasks.urllib.request.urlopen

    def served(address: str, **options: Any) -> Any:
        opened.append(address)
        return real(source.as_uri(), **options)

    monkeypatch.setattr("urllib.request.urlopen", served)
    for _ in range(2):
        (problem,) = load(TASKS["humaneval+"], None, Reading(), nothing)
    assert problem.judge("```python\ndef f(x): return x\n```").right
    assert len(opened) == 1
    assert opened[0].startswith(
        "https://github.com/evalplus/humanevalplus_release/releases/download/v0.1.10/"
    )


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert evalplus_suites.cache_folder() == Path.home() / ".cache" / "gopd"
