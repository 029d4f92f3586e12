"""`gopd eval`, `grade` and `compare` with a tiny random model: what is sampled, kept, continued and summed up."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeModel
from gopd.cli import main
from gopd.errors import BadInput, RunFailed
from gopd.evaluate import results
from gopd.evaluate.figures import figures
from gopd.evaluate.grade import grade_again
from gopd.evaluate.problem import Reading
from gopd.evaluate.run import Options, evaluate
from gopd.evaluate.tasks import TASKS
from gopd.model import load_model
from gopd.sampler import Request
from gopd.sampler.torch import TorchSampler
from gopd.sections import ModelSpec, SamplingSection
from gopd.types import Verdict
from gopd.verify import math

QUESTIONS = ["1+1=?", "what is 2*3?", "9-4=?"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"question": q, "answer": f"so\n#### {n}"} for n, q in enumerate(QUESTIONS, 2)]
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lcb = {
        **{"question_id": "q", "question_content": "Do.", "starter_code": "", "metadata": "{}"},
        **{"public_test_cases": '[{"input": "1", "output": "1"}]', "private_test_cases": "[]"},
    }
    (folder / "test6.jsonl").write_text(json.dumps(lcb) + "\n")
    return folder


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A grader that finds an answer in the text of a random model: its length, right when even. Counts its calls."""
    seen: list[str] = []

    def judge(gold: str, response: str) -> Verdict:
        seen.append(response)
        right = len(response) % 2 == 0
        return Verdict("right" if right else "wrong", gold if right else str(1000 + len(response)))

    monkeypatch.setattr(math, "judge", judge)
    return seen


def options(data: Path, **changes: Any) -> Options:
    return Options(**({"samples": 2, "max_tokens": 6, "slots": 4, "data": data} | changes))


def run(model: Path, data: Path, to: Path, *more: str, tasks: str = "gsm8k") -> int:
    fixed = ["--n", "2", "--max-tokens", "6", "--slots", "4", "--data", str(data), "--to", str(to)]
    return main(["eval", str(model), "--tasks", tasks, *fixed, *more])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_every_problem_is_answered_n_times_and_judged(
    student_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(student_folder, data, tmp_path / "out", "--pass-at", "1,2") == 0
    folder = tmp_path / "out" / student_folder.name
    found = records(folder / "gsm8k")
    assert [(r["problem"], r["sample"]) for r in found] == [(str(p), n) for p in (1, 2, 3) for n in (0, 1)]
    assert not (folder / "gsm8k" / "verdicts.jsonl").exists()
    for record, question in zip(found[::2], QUESTIONS, strict=True):
        assert question in record["prompt"]
        assert record["prompt"].startswith("<|im_start|>user\n")
        assert "put your final answer within" in record["prompt"]
        assert 1 <= record["tokens"] <= 6
        assert record["finished"] or record["tokens"] == 6
        assert record["right"] is (len(record["response"]) % 2 == 0)
    summary = json.loads((folder / "summary.json").read_text())["tasks"]["gsm8k"]
    right = [r["right"] for r in found]
    assert summary["average"]["mean"] == pytest.approx(sum(right) / 6)
    assert summary["pass_at"]["2"]["mean"] == pytest.approx(sum(any(right[i : i + 2]) for i in (0, 2, 4)) / 3)
    assert summary["tokens"]["mean"] == pytest.approx(sum(r["tokens"] for r in found) / 6)
    assert summary["truncated"]["mean"] == pytest.approx(sum(not r["finished"] for r in found) / 6)
    shown = capsys.readouterr().out
    assert "3 × 2" in shown
    assert "avg@n" in shown
    assert "maj@n" in shown


def test_responses_are_the_samplers_and_do_not_depend_on_the_other_problems(
    student_folder: Path, data: Path, tmp_path: Path
) -> None:
    model = load_model(
        ModelSpec(model=str(student_folder)), "m", device=torch.device("cpu"), dtype=torch.float32
    )
    task = TASKS["gsm8k"]
    evaluate([str(student_folder)], [task], tmp_path / "all", options(data))
    evaluate(
        [str(student_folder)],
        [task],
        tmp_path / "some",
        options(data, slots=1, samples=1, reading=Reading(limit=2)),
    )
    name = student_folder.name
    found = {(r["problem"], r["sample"]): r for r in records(tmp_path / "all" / name / "gsm8k")}
    for record in records(tmp_path / "some" / name / "gsm8k"):
        assert record["response"] == found[record["problem"], record["sample"]]["response"]
    assert len({r["response"] for r in found.values()}) > 3
    ids = model.tokenizer(found["1", 0]["prompt"], add_special_tokens=False)["input_ids"]
    assert model.tokenizer.decode(ids) == found["1", 0]["prompt"]
    greedy = TorchSampler(model, 1).sample([Request(ids, (1,), 6)], SamplingSection(top_k=1), lambda *_: None)
    evaluate(
        [str(student_folder)], [task], tmp_path / "greedy", options(data, sampling=SamplingSection(top_k=1))
    )
    text = model.tokenizer.decode(greedy[0].ids, skip_special_tokens=True)
    assert records(tmp_path / "greedy" / name / "gsm8k")[0]["response"] == text


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_gives_the_same_greedy_answers(make_model: MakeModel, data: Path, tmp_path: Path) -> None:
    folder, task = make_model(9, head_dim=32), TASKS["gsm8k"]
    greedy = options(data, sampling=SamplingSection(top_k=1))
    evaluate([str(folder)], [task], tmp_path / "torch", greedy)
    evaluate([str(folder)], [task], tmp_path / "vllm", replace(greedy, engine="vllm"))
    own, other = (
        {
            (r["problem"], r["sample"]): (r["response"], r["finished"])
            for r in records(tmp_path / e / folder.name / "gsm8k")
        }
        for e in ("torch", "vllm")
    )
    assert own == other and len(set(own.values())) > 1


def test_an_interrupted_run_goes_on_and_ends_in_the_same_files(
    student_folder: Path, data: Path, tmp_path: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(student_folder, data, whole) == 0
    judged.clear()
    finished: list[int] = []
    keep = results.TaskResults.sampled

    def killed(self: results.TaskResults, record: dict[str, Any]) -> None:
        if len(finished) == 3:
            raise KeyboardInterrupt
        finished.append(1)
        keep(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(results.TaskResults, "sampled", killed)
        assert run(student_folder, data, cut) == 130
    folder = cut / student_folder.name / "gsm8k"
    assert len(records(folder)) == 3
    before = len(judged)
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"problem": "3", "sam')  # as a kill leaves it
    drawn: list[int] = []
    sample = TorchSampler.sample

    def counted(self: TorchSampler, requests: Any, *rest: Any) -> Any:
        drawn.append(len(requests))
        return sample(self, requests, *rest)

    monkeypatch.setattr(TorchSampler, "sample", counted)
    assert run(student_folder, data, cut) == 0
    assert drawn == [3]
    assert len(judged) == 6
    assert before <= 3
    name = Path(student_folder.name) / "gsm8k" / "samples.jsonl"
    assert (cut / name).read_text() == (whole / name).read_text()
    assert run(student_folder, data, cut) == 0
    assert (drawn, len(judged)) == ([3], 6)


def test_more_samples_and_problems_add_to_what_is_there(
    student_folder: Path, data: Path, tmp_path: Path, judged: list[str]
) -> None:
    task = TASKS["gsm8k"]
    models, out = [str(student_folder)], tmp_path / "out"
    small = evaluate(models, [task], out, options(data, samples=1, reading=Reading(limit=2)))
    first = records(out / student_folder.name / "gsm8k")
    large = evaluate(models, [task], out, options(data, samples=3))
    assert [f.problems for f in (*small.values(), *large.values())] == [2, 3]
    assert len(judged) == 9
    again = {(r["problem"], r["sample"]): r for r in records(out / student_folder.name / "gsm8k")}
    assert len(again) == 9
    assert all(again[r["problem"], r["sample"]] == r for r in first)
    less = evaluate(models, [task], out, options(data, samples=1))
    assert [f.samples for f in less.values()] == [1]
    assert len(records(out / student_folder.name / "gsm8k")) == 9


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    whole = {"problem": "1", "sample": 0, "response": "a"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(whole) + '\n{"problem": "2", "sam')
    results.TaskResults(tmp_path).sampled({"problem": "3", "sample": 0, "response": "ß"})
    found = results.TaskResults(tmp_path).records
    assert list(found) == [("1", 0), ("3", 0)]
    assert found["3", 0]["response"] == "ß"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"another configuration \(sampling .*'seed': 0.*'seed': 1.*give a new folder by --to"),
        ({"max_tokens": 5}, r"another configuration \(sampling .*'max_tokens': 6"),
        ({"completion": True}, r"problem 1 was asked in other words"),
    ],
)
def test_results_of_another_configuration_are_not_mixed(
    student_folder: Path, data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    evaluate([str(student_folder)], [TASKS["gsm8k"]], tmp_path, options(data))
    before = (tmp_path / student_folder.name / "gsm8k" / "samples.jsonl").read_bytes()
    with pytest.raises(BadInput, match=message):
        evaluate([str(student_folder)], [TASKS["gsm8k"]], tmp_path, options(data, **change))
    assert (tmp_path / student_folder.name / "gsm8k" / "samples.jsonl").read_bytes() == before


def test_other_weights_under_the_same_name_are_noticed(
    make_model: MakeModel, data: Path, tmp_path: Path
) -> None:
    model = make_model(7)
    evaluate([str(model)], [TASKS["gsm8k"]], tmp_path, options(data))
    other = make_model(8)
    (other / "model.safetensors").replace(model / "model.safetensors")
    with pytest.raises(BadInput, match=r"another configuration \(weights"):
        evaluate([str(model)], [TASKS["gsm8k"]], tmp_path, options(data))


def test_grading_anew_samples_nothing(
    student_folder: Path, data: Path, tmp_path: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(student_folder, data, tmp_path / "out")
    folder = tmp_path / "out" / student_folder.name / "gsm8k"
    before = records(folder)
    monkeypatch.setattr(math, "judge", lambda gold, response: Verdict("wrong", "x"))
    monkeypatch.setattr(TorchSampler, "sample", None)
    assert main(["grade", str(tmp_path / "out"), "--data", str(data)]) == 0
    after = records(folder)
    assert not any(r["right"] for r in after)
    assert [r["response"] for r in after] == [r["response"] for r in before]
    summary = json.loads((folder.parent / "summary.json").read_text())
    assert summary["tasks"]["gsm8k"]["average"]["mean"] == 0
    assert summary["model"] == str(student_folder)


def test_an_interrupted_grading_goes_on(
    student_folder: Path, data: Path, tmp_path: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(student_folder, data, tmp_path / "out")
    folder = tmp_path / "out" / student_folder.name / "gsm8k"
    before = records(folder)
    judged.clear()
    judge = math.judge

    def failing(gold: str, response: str) -> Verdict:
        if len(judged) == 4:
            raise RunFailed("no more")
        return judge(gold, response)

    with monkeypatch.context() as patch:
        patch.setattr(math, "judge", failing)
        patch.setattr("os.cpu_count", lambda: 1)
        with pytest.raises(RunFailed, match="no more"):
            grade_again(tmp_path / "out", options(data).reading, data)
    assert len((folder / "verdicts.jsonl").read_text().splitlines()) == 4
    grade_again(tmp_path / "out", options(data).reading, data)
    assert len(judged) == 6
    assert records(folder) == before


def test_comparison_is_paired(
    make_model: MakeModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = make_model(11), make_model(12)
    assert (
        main(
            [
                "eval",
                str(one),
                str(other),
                "--tasks",
                "gsm8k",
                "--n",
                "2",
                "--max-tokens",
                "6",
                "--data",
                str(data),
                "--to",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    a, b = (str(tmp_path / "out" / folder.name) for folder in (one, other))
    assert main(["compare", a, b]) == 0
    shown = capsys.readouterr().out
    assert "gsm8k" in shown
    assert "undecided" in shown or "better" in shown
    assert main(["compare", a, b, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["task"], told["problems"]) == ("gsm8k", 3) and told["verdict"] in shown
    assert told["difference"]["mean"] == pytest.approx(told["b"]["mean"] - told["a"]["mean"])
    assert main(["compare", a, a]) == 0
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "out"), b]) == 2
    assert "results of several models" in capsys.readouterr().err
    assert main(["compare", a, str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "gsm9k"], "no task 'gsm9k'; did you mean gsm8k"),
        (["--n", "0"], "--n is 0"),
        (["--temperature", "0"], "--temperature: "),
        (["--pass-at", "4"], "pass@4 cannot be estimated from 2 samples"),
        (["--pass-at", "x"], "--pass-at x: expected whole numbers"),
        (["--max-tokens", "4000"], "exceed its context of 512; give --max-tokens"),
        (["--data", "nowhere"], "--data nowhere: is no folder or file"),
    ],
)
def test_bad_input_is_told_before_anything_is_drawn(
    student_folder: Path,
    data: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gopd.setup.load_model", None)
    assert run(student_folder, data, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_chat_template_needs_plain_prompts(
    make_model: MakeModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(5)
    (model / "chat_template.jinja").unlink()
    assert run(model, data, tmp_path / "out") == 2
    assert "--completion" in capsys.readouterr().err
    assert run(model, data, tmp_path / "out", "--completion") == 0
    assert records(tmp_path / "out" / model.name / "gsm8k")[0]["prompt"].startswith("1+1=?\n")


def test_two_models_of_one_name_need_folders_of_their_own(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="would share the folder x"):
        evaluate(["a/x", "b/x"], [TASKS["gsm8k"]], tmp_path, options(data))


def test_programs_are_graded_in_the_sandbox(student_folder: Path, data: Path, tmp_path: Path) -> None:
    assert run(student_folder, data, tmp_path / "out", tasks="livecodebench_v6,gsm8k") == 0
    folder = tmp_path / "out" / student_folder.name
    assert {r["reason"] for r in records(folder / "livecodebench_v6")} == {"no-answer"}
    settings = json.loads((folder / "livecodebench_v6" / "settings.json").read_text())
    assert settings["grading"] == {"sandbox": "namespaces", "rules": "gopd"}
    with pytest.raises(BadInput, match="gopd grade decides anew"):
        evaluate(
            [str(student_folder)],
            [TASKS["livecodebench_v6"]],
            tmp_path / "out",
            options(data, reading=Reading(lcb_compat=True)),
        )


def record(right: bool, answer: str | None, tokens: int = 10, **more: Any) -> dict[str, Any]:
    reason = "right" if right else "no-answer" if answer is None else "wrong"
    return {"right": right, "answer": answer, "reason": reason, "tokens": tokens, "finished": True} | more


def test_figures_by_hand() -> None:
    problems = [
        [record(True, "4"), record(True, "4.0"), record(False, "5", finished=False), record(False, None, 30)],
        [record(False, "1/2"), record(False, "0.5"), record(True, "7"), record(False, r"\frac{1}{2}")],
    ]
    found = figures(problems, "math", (1, 2))
    assert found.average.mean == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found.pass_at[1].mean == found.average.mean
    assert found.pass_at[2].mean == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert found.majority is not None
    assert found.majority.mean == 0.5  # the second problem's three halves are one wrong answer
    assert found.tokens.mean == pytest.approx((15 + 10) / 2)
    assert found.truncated.mean == pytest.approx(1 / 8)
    assert found.unanswered.mean == pytest.approx(1 / 8)
    assert found.reasons == {"right": 3, "wrong": 4, "no-answer": 1}
    assert figures(problems, "code", ()).majority is None


def test_answers_that_take_too_long_are_not_compared_again_for_the_vote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(math, "equal", None)
    bombs = [record(False, text) | {"reason": "timeout"} for text in ("9^{9^9}", "9^{9^9}", "8^{8^8}")]
    found = figures([[*bombs, record(False, "1"), record(True, "2")]], "math", ())
    assert found.majority is not None
    assert found.majority.mean == 0
