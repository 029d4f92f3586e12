"""What is fuzzed: a function for each reader of outside bytes, with the seeds that mutations start from.

A target takes bytes and a folder to write in. It returns, or raises `BadInput` or `RunFailed`, which are what users are
told; anything else it raises is a finding. `tests/fuzz/run.py` drives targets with Atheris, `test_fuzz.py` with
Hypothesis. Nothing is imported before a target is asked for, so that Atheris can instrument it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
BETWEEN = b"\n%%\n"
"""Separates the parts of an input that stand for several files or texts."""

Check = Callable[[bytes, Path], None]


@dataclass(frozen=True)
class Target:
    """`make` imports what is needed, prepares the folder, and gives the check; `words` are tokens of the format."""

    make: Callable[[Path], Check]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[str] = ()


def parts(data: bytes, count: int) -> list[bytes]:
    """So many parts of an input; those it lacks are empty."""
    found = data.split(BETWEEN, count - 1)
    return found + [b""] * (count - len(found))


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def recipe(folder: Path) -> Check:
    from gopd.recipe_file import load_recipe, resolved_yaml

    def check(data: bytes, folder: Path) -> None:
        content, override = parts(data, 2)
        path = folder / "recipe.yaml"
        path.write_bytes(content)
        found = load_recipe(path, [text(override)] if override else [])
        (folder / "again.yaml").write_text(resolved_yaml(found), encoding="utf-8")
        assert load_recipe(folder / "again.yaml") == found

    return check


def recipe_seeds() -> list[bytes]:
    shipped = [path.read_bytes() for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
    return [
        *shipped,
        b"student: &m {model: s}\nteachers: {a: *m, b: {<<: *m}}\ndata: {files: [x.jsonl]}\ntrain: {steps: 1}\n",
        b"method: sft\nstudent: {model: s}\ndata: {files: [x.jsonl]}\ntrain: {epochs: 2}"
        + BETWEEN
        + b"a.b=1",
    ]


ROW = {
    "data_source": "sums",
    "prompt": [{"role": "user", "content": "1+1="}],
    "reward_model": {"ground_truth": "2"},
    "extra_info": {"opd_teacher": "a"},
    "response": "2.",
}


def _load(files: Sequence[Path]) -> None:
    from gopd.data import load_prompts
    from gopd.sections import SourceSection

    for need_response in (False, True):
        source = SourceSection(files=tuple(map(str, files)), verifier="none" if need_response else "math")
        for prompt in load_prompts(source, routes=("a", "b"), need_response=need_response):
            for message in prompt.messages:
                message["content"].encode()
            for value in (prompt.response, prompt.ground_truth, prompt.route, prompt.data_source):
                (value or "").encode()


def jsonl(folder: Path) -> Check:
    import gopd.data
    import gopd.verify

    assert gopd.data and gopd.verify

    def check(data: bytes, folder: Path) -> None:
        packed = data.startswith(b"\x1f\x8b")
        path = folder / ("rows.jsonl.gz" if packed else "rows.jsonl")
        path.write_bytes(data)
        _load([path])

    return check


def jsonl_seeds() -> list[bytes]:
    import gzip

    line = json.dumps(ROW).encode()
    other = json.dumps(ROW | {"prompt": "caf\u00e9 \ud83d\ude00", "reward_model": None}).encode()
    return [line, line + b"\n\n" + other + b"\n", b"\xef\xbb\xbf" + line, gzip.compress(line, mtime=0)]


def _parquet(rows: list[dict[str, Any]], schema: Any = None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return bytes(buffer.getvalue().to_pybytes())


def _as_parquet(data: bytes) -> bytes | None:
    """Rows in JSON as a Parquet file, other bytes as they are; None where these rows make no table."""
    if not data.startswith(b"["):
        return data
    try:
        return _parquet(json.loads(data))
    except Exception:
        return None


def parquet(folder: Path) -> Check:
    import pyarrow.parquet

    import gopd.data
    import gopd.verify

    assert pyarrow.parquet and gopd.data and gopd.verify

    def check(data: bytes, folder: Path) -> None:
        content = _as_parquet(data)
        if content is not None:
            (folder / "rows.parquet").write_bytes(content)
            _load([folder / "rows.parquet"])

    return check


def parquet_seeds() -> list[bytes]:
    return [_parquet([ROW]), _parquet([ROW] * 3), json.dumps([ROW, ROW]).encode()]


RECIPE = "student: {model: s}\nteachers: {a: {model: t}}\ndata: {files: [x.jsonl]}\ntrain: {steps: 4}\n"
METRICS = {"step": 1, "loss": 0.5, "kl_to_target": 0.1, "reward/sums": 0.5, "tokens_per_second/train": 7.0}
VALIDATION = {
    "step": 0,
    "model": "student",
    "domains": {"sums": {"accuracy": 0.5, "low": 0.4, "high": 0.6, "problems": 3, "kl_to_target": 0.1}},
}
ROLLOUT = {
    "step": 1,
    "row": 0,
    "where": "x.jsonl:1",
    "sample": 0,
    "route": "a",
    "data_source": "sums",
    "prompt": "1+1=",
    "response": "2.",
    "reward": 1.0,
    "finished": True,
    "response_ids": [5, 6],
    "tokens": ["2", "."],
    "versions": [0, 0],
    "sampler_logprobs": [-0.5, -0.25],
    "student_logprobs": [-0.5, -0.25],
    "teacher_logprobs": [-0.5, None],
    "advantages": [0.5, -0.25],
}


def _report(run: Path) -> None:
    from gopd.report.curves import as_json, groups_of
    from gopd.report.page import page
    from gopd.report.rollouts import rollouts_json
    from gopd.report.runs import read_runs

    groups = groups_of(read_runs([run]))
    rollouts = rollouts_json(groups, None)
    page(groups, as_json(groups), rollouts).encode()


def rollouts(folder: Path) -> Check:
    from gopd.report import curves, page, rollouts, runs, text  # noqa: F401

    run = folder / "run"
    (run / "rollouts").mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE)
    (run / "metrics.jsonl").write_text(json.dumps(METRICS) + "\n")

    def check(data: bytes, folder: Path) -> None:
        content = _as_parquet(data)
        if content is not None:
            (run / "rollouts" / "step-00000001.parquet").write_bytes(content)
            _report(run)

    return check


def rollouts_seeds() -> list[bytes]:
    from gopd.tracking import ROLLOUT_SCHEMA

    return [_parquet([ROLLOUT, ROLLOUT], ROLLOUT_SCHEMA), json.dumps([ROLLOUT, ROLLOUT]).encode()]


def metrics(folder: Path) -> Check:
    from gopd.report import curves, page, rollouts, runs, text  # noqa: F401

    run = folder / "run"
    run.mkdir()
    names = ("metrics.jsonl", "validation.jsonl", "versions.json", "recipe.yaml")

    def check(data: bytes, folder: Path) -> None:
        for name, content in zip(names, parts(data, len(names)), strict=True):
            (run / name).unlink(missing_ok=True)
            if content:
                (run / name).write_bytes(content)
        if any(run.iterdir()):
            _report(run)

    return check


def metrics_seeds() -> list[bytes]:
    lines = [json.dumps(METRICS | {"step": step}).encode() for step in (1, 2)]
    versions = json.dumps({"python": "3.11", "cpus": 2, "resumed_with": [{"python": "3.12"}]}).encode()
    whole = [b"\n".join(lines) + b"\n", json.dumps(VALIDATION).encode() + b"\n", versions, RECIPE.encode()]
    return [BETWEEN.join(whole), whole[0], BETWEEN.join(whole[:2])]


def script(folder: Path) -> Check:
    from gopd.verl.convert import convert
    from gopd.verl.overrides import read_overrides
    from gopd.verl.script import read_script
    from gopd.verl.show import as_json, recipe_yaml, report

    def check(data: bytes, folder: Path) -> None:
        path = folder / "run.sh"
        path.write_bytes(data)
        found = read_script(path, ["data.seed=3"], {"HOME": "/home/u", "rows": "r"})
        for launch in found.launches:
            done = convert(read_overrides(launch.arguments), launch.where)
            recipe_yaml(done, found, launch)
            report(done, found, launch, [])
            json.dumps(as_json(done, found, launch, []))

    return check


def script_seeds() -> list[bytes]:
    known = [path.read_bytes() for path in sorted((ROOT / "tests" / "verl").glob("*.sh"))]
    launch = b"python3 -m verl.trainer.main_ppo a.b=${x:-$((2*3))} 'c=[1,{d: 2}]' data.seed=$y"
    return [*known, b"x=1\ny=$x$x\nfor i in 1 2; do z=$i; done\n" + launch]


def checkpoint(folder: Path) -> Check:
    from gopd.checkpoint import RunFolder
    from gopd.recipe_file import load_recipe
    from gopd.tracking import Metrics

    (folder / "run.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "run.yaml", [f"tracking.folder={folder}"])
    run = RunFolder.open(recipe, resume=False)
    for step in (1, 2):
        run.save(step, lambda target: (target / "weights").write_bytes(b"12345") and None, {"rng": step})
        Metrics(run.metrics).append({"step": step})
    run.close()
    whole = folder / "whole"
    run.path.rename(whole)
    newest = run.checkpoint(2).relative_to(run.path)
    files = [newest / "checksums.json", newest / "state.json", newest / "weights"]
    files += [Path(name) for name in ("versions.json", "recipe.yaml", "metrics.jsonl")]

    def check(data: bytes, folder: Path) -> None:
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(whole, run.path)
        place = files[data[0] % len(files)] if data else files[0]
        (run.path / place).write_bytes(data[1:])
        again = RunFolder.open(recipe, resume=True)
        try:
            found = again.latest()
            assert found is not None
            assert found[2] == {"rng": found[0], "step": found[0]}, found
            assert found[0] == 2 or again.warnings
            Metrics(again.metrics).rewind(found[0])
        finally:
            again.close()

    return check


def checkpoint_seeds() -> list[bytes]:
    sums = json.dumps({"state.json": "0" * 64, "weights": "0" * 64}).encode()
    versions = json.dumps({"python": "3", "cpus": 2, "resumed_with": []}).encode()
    contents = [
        sums,
        b'{"rng": 2, "step": 2}',
        b"12345",
        versions,
        RECIPE.encode(),
        b'{"step": 1}\n{"step": 2}\n',
    ]
    return [bytes([number]) + content for number, content in enumerate(contents)]


CANARY = "import pathlib\npathlib.Path(__file__).with_name('canary').touch()\n"
MODEL_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


def model(folder: Path) -> Check:
    from gopd.model import describe
    from gopd.rows import resolve
    from gopd.sections import ModelSpec

    whole = folder / "model"
    whole.mkdir()
    for name in (*MODEL_FILES, "chat_template.jinja"):
        shutil.copy(resolve("builtin:base") / name, whole / name)
    (whole / "canary.py").write_text(CANARY)

    def check(data: bytes, folder: Path) -> None:
        name = MODEL_FILES[data[0] % len(MODEL_FILES)] if data else MODEL_FILES[0]
        before = (whole / name).read_bytes()
        (whole / name).write_bytes(data[1:])
        try:
            found = describe(ModelSpec(model=str(whole)), "student")
            assert found.eos_ids and found.context_length and found.logits
        finally:
            (whole / name).write_bytes(before)
            assert not (whole / "canary").exists(), "code of the model's folder was run"

    return check


def model_seeds() -> list[bytes]:
    from gopd.rows import resolve

    folder = resolve("builtin:base")
    found = [bytes([n]) + (folder / name).read_bytes() for n, name in enumerate(MODEL_FILES)]
    remote = {"auto_map": {"AutoConfig": "canary.Config", "AutoTokenizer": ["canary.T", None]}}
    return [*found, b"\x00" + json.dumps(remote).encode(), b"\x01" + json.dumps(remote).encode()]


def math(folder: Path) -> Check:
    from gopd.verify import math

    def check(data: bytes, folder: Path) -> None:
        gold, response = map(text, parts(data, 2))
        math.check_gold(gold)
        assert isinstance(math.grade(gold, response), bool)
        if not {*gold} & {*"\\{}"}:
            assert math.grade(gold, f"\\boxed{{{gold}}}")

    return check


def math_seeds() -> list[bytes]:
    pairs = [
        (b"72", b"so \\boxed{72}."),
        (b"\\frac{1}{2}", b"\\boxed{\\frac{2}{4}} and \\boxed{0.5}"),
        (b"(1, 2]", b"\\boxed{(1,2]}"),
        (b"1,234", b"\\boxed{1{,}234}"),
        (b"x^2+1", b"\\boxed{1+x^{2}}"),
    ]
    return [BETWEEN.join(pair) for pair in pairs]


def code(folder: Path) -> Check:
    from gopd.verify import calls, evalplus, outputs, programs
    from gopd.verify import code as grader
    from gopd.verify.code import parse_ground_truth

    def check(data: bytes, folder: Path) -> None:
        response, truth, expected, printed, returned = parts(data, 5)
        programs.last_program(text(response))
        programs.between_last_fences(text(response))
        outputs.same_output(text(expected), text(printed))
        outputs.reference_output(text(expected), text(printed))
        _compare(expected, returned, outputs, evalplus, calls)
        problem = parse_ground_truth(text(truth))
        with patch("gopd.sandbox.run", lambda *_, stdin, limits: _outcome(stdin, returned)):
            for rules in (grader.OURS, grader.REFERENCE):
                verdict = grader.judge(problem, text(response), rules=rules)
                assert isinstance(verdict.right, bool)

    return check


def _outcome(stdin: bytes, said: bytes) -> Any:
    """What a sandbox would give back whose program said this, as calls if it was asked for calls."""
    from gopd import sandbox

    token = json.loads(stdin)["token"].encode() if stdin.startswith(b'{"token"') else None
    lines = said if token is None else b"\n".join(token + b" " + line for line in said.split(b"\n"))
    return sandbox.Outcome("ok", lines, b"", 0.1, 0)


def _compare(expected: bytes, returned: bytes, outputs: Any, evalplus: Any, calls: Any) -> None:
    """Values as they come back from calls, against expected ones from data."""
    from gopd import sandbox

    try:
        want = json.loads(text(expected))
    except (ValueError, RecursionError):
        return
    with patch("gopd.sandbox.run", lambda *_, stdin, limits: _outcome(stdin, returned)):
        made = calls.call("", "f", [[]], limits=sandbox.Limits(), seconds=[1.0])
    for got in made.values:
        outputs.same_value(want, got)
        outputs.reference_value(want, got)
        empty = evalplus.CallSet([[]], [want], [1.0])
        problem = evalplus.Problem("mbpp+", "f", 1e-6, empty, empty)
        evalplus._passes(problem, [], want, got)


def code_seeds() -> list[bytes]:
    program = b"Here:\n```python\nprint(1)\n```\n"
    return [
        BETWEEN.join([program, b'{"inputs": ["1"], "outputs": ["2.0"]}', b"2.0 3", b"2 3", b"2.0"]),
        BETWEEN.join(
            [
                program,
                b'{"inputs": [[1]], "outputs": [{"a": [1.5]}], "fn_name": "f"}',
                b'{"a": [1.5, 2]}',
                b"x",
                b'{"value": {"dict": [["a", [1.5, {"int": "0x2"}]]]}, "seconds": 0.1}',
            ]
        ),
    ]


def results(folder: Path) -> Check:
    from gopd.evaluate.compare import compare
    from gopd.evaluate.results import TaskResults

    good = folder / "good" / "task"
    _write_results(good, *parts(results_seeds()[0], 3))

    def check(data: bytes, folder: Path) -> None:
        shutil.rmtree(folder / "other", ignore_errors=True)
        _write_results(folder / "other" / "task", *parts(data, 3))
        compare(good.parent, folder / "other")
        found = TaskResults(folder / "other" / "task")
        found.check(found.settings)
        found.close()

    return check


def _write_results(folder: Path, samples: bytes, verdicts: bytes, settings: bytes) -> None:
    folder.mkdir(parents=True)
    for name, content in (("samples", samples), ("verdicts", verdicts)):
        (folder / f"{name}.jsonl").write_bytes(content)
    (folder / "settings.json").write_bytes(settings)


def results_seeds() -> list[bytes]:
    sample = {"problem": "p/1", "sample": 0, "prompt": "1+1=", "response": "2", "tokens": 1, "finished": True}
    verdict = {"problem": "p/1", "sample": 0, "answer": "2", "reason": "right", "right": True}
    settings = {"task": "gsm8k", "model": "m", "weights": "w", "prompt": {}, "sampling": {}, "grading": {}}
    whole = (json.dumps(sample) + "\n", json.dumps(verdict) + "\n", json.dumps(settings))
    merged = (json.dumps(sample | verdict) + "\n", "", json.dumps(settings))
    return [BETWEEN.join(part.encode() for part in found) for found in (whole, merged)]


JSON_WORDS = (
    "null",
    "true",
    "NaN",
    "Infinity",
    "1e999",
    "[",
    "{",
    '"',
    "\\ud800",
    "[[[[[[[[",
    "999999999999999999999",
)
SHELL_WORDS = (
    "$((",
    "))",
    "${",
    ":-",
    "}",
    "$x",
    "`",
    "$(",
    "<<EOF",
    "if",
    "fi",
    "&&",
    "**",
    "set --",
    "shift",
    "\\\n",
)
YAML_WORDS = (
    *("&a ", "*a", "<<: ", "? ", ": ", "- ", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!pairs "),
    *("0x_", "1_0:5", "2001-99-99", ".inf", "\\UFFFFFFFF"),
)
TARGETS = {
    "recipe": Target(recipe, recipe_seeds, (*YAML_WORDS, *JSON_WORDS, "%%\n")),
    "jsonl": Target(jsonl, jsonl_seeds, JSON_WORDS),
    "parquet": Target(parquet, parquet_seeds, JSON_WORDS),
    "rollouts": Target(rollouts, rollouts_seeds, JSON_WORDS),
    "metrics": Target(metrics, metrics_seeds, (*JSON_WORDS, "\n%%\n")),
    "script": Target(script, script_seeds, SHELL_WORDS),
    "checkpoint": Target(checkpoint, checkpoint_seeds, JSON_WORDS),
    "model": Target(model, model_seeds, JSON_WORDS),
    "math": Target(math, math_seeds, ("\\boxed{", "\\frac", "^", "}", "\n%%\n", "\\text{", "\\sqrt", "!")),
    "code": Target(
        code, code_seeds, (*JSON_WORDS, "\n%%\n", "```", '{"int": "', '{"dict": [[', '{"bytes": "00"}')
    ),
    "results": Target(results, results_seeds, (*JSON_WORDS, "\n%%\n")),
}
