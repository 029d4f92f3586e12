"""`gopd doctor`: every check on a healthy case and a sick one made for real; its numbers against Transformers'."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conftest import EOS, MakeModel
from fake_server import FakeServer
from gopd import cli
from gopd.collect import Collector
from gopd.console import Display
from gopd.doctor import command, resources
from gopd.doctor.checks import CHECKS
from gopd.doctor.contest import problems_of
from gopd.doctor.evidence import Evidence, Request
from gopd.doctor.finding import Finding
from gopd.doctor.gather import chosen_rows, gather, look, prepared
from gopd.doctor.overlap import TOP_K
from gopd.doctor.resources import run_fits
from gopd.doctor.responses import goes_in_circles, responses_end, sampler_matches_trainer
from gopd.doctor.rewards import rewards_differ, verifiers_judge
from gopd.doctor.scoring import scores_are_steady, student_is_near, teachers_differ
from gopd.doctor.show import Diagnosis, show, visible
from gopd.doctor.teachers import teachers_are_better
from gopd.doctor.tokens import models_agree, turns_end, views_end_alike
from gopd.errors import BadInput
from gopd.plan.devices import Device
from gopd.recipe import AnyRecipe
from gopd.recipe_file import load_recipe, parse_recipe
from gopd.roles import Done, silent
from gopd.sampler.torch import TorchSampler
from gopd.scorer import Scorer
from gopd.setup import LocalRoles, prepare
from gopd.types import Rollout, Scores
from runs import Tree, held_out, lines, merged, opd_tree, sft_tree, write_recipe, write_rows
from tiny import CPU, load, plain64, row_logprobs

QUICKSTART = str(Path(__file__).resolve().parents[1] / "recipes/quickstart.yaml")
DEVICE = Device("cpu", 32e9, 1e11, 1e10, 1e10, 1e10, 1e10, 1, narrow=False)
"""A machine that nobody measures."""


def quiet() -> Display:
    return Display(Console(quiet=True))


def evidence_of(recipe: AnyRecipe, rows: int = 12, problems: int = 0) -> Evidence:
    task, said = prepared(recipe)
    request = Request(recipe, "recipe.yaml", (), rows, problems)
    return gather(request, task, said, (DEVICE, 1), quiet())


def quickstart(*overrides: str, rows: int = 12, problems: int = 0) -> Evidence:
    return evidence_of(load_recipe(QUICKSTART, overrides), rows, problems)


@pytest.fixture(scope="module")
def healthy() -> Evidence:
    """The quickstart as it ships, seen once."""
    return quickstart(rows=16, problems=48)


@pytest.fixture
def tree(tmp_path: Path, student_folder: Path, teacher_folder: Path) -> Tree:
    """A random student and a random teacher of one vocabulary: far apart."""
    return opd_tree(tmp_path, student_folder, {"math": teacher_folder}, objective={"reward_scale": 1.25})


def is_sick(finding: Finding, verdict: str, *said: str) -> None:
    assert finding.verdict == verdict, finding
    for text in said:
        assert text in finding.measured + finding.mend, finding
    assert finding.mend, "no mend"


def is_fine(finding: Finding) -> None:
    assert finding.verdict == "fine", finding
    assert not finding.mend


# --- the whole ------------------------------------------------------------------------------------------------------


def test_the_quickstart_is_healthy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user calls it: exit code 0, every check in the JSON, and not one file written."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", QUICKSTART, "--rows", "12", "--problems", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    verdicts = {finding["check"]: finding["verdict"] for finding in found["findings"]}
    assert len(verdicts) == len(CHECKS)
    assert verdicts.pop("rewards") == verdicts.pop("teachers") == "unmeasured"
    assert set(verdicts.values()) == {"fine"} == {found["verdict"]}
    assert len(found["rows"]) == 3
    assert {row["route"] for row in found["rows"]} == {"math", "code"}
    assert list(tmp_path.iterdir()) == []


def test_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, tree: Tree) -> None:
    recipe = str(write_recipe(tmp_path / "mine.yaml", tree))
    for arguments, said in (
        (["no.yaml"], "no.yaml"),
        ([recipe, "--rows", "0"], "--rows 0"),
        ([recipe, "--problems", "-1"], "--problems -1"),
        ([recipe, "teachers.math.modle=x"], "did you mean"),
    ):
        assert cli.main(["doctor", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    assert "exit codes: 0 fine or warnings only, 1 a stop, 2 bad input" in capsys.readouterr().out


def test_what_cannot_start_is_a_stop_with_the_same_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tree: Tree, make_model: MakeModel
) -> None:
    """Other vocabularies: `prepare` refuses them, and the doctor says what it said."""
    other = make_model(5)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["elephant"])
    tokenizer.save_pretrained(other)
    sick = merged(tree, {"teachers": {"math": {"model": str(other)}}})
    with pytest.raises(BadInput, match="different vocabularies") as refused:
        prepare(parse_recipe(sick))
    assert cli.main(["doctor", str(write_recipe(tmp_path / "mine.yaml", sick)), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["verdict"] == "stop" and finding["measured"] == str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_it_looks_at_the_very_responses_that_training_begins_with(tree: Tree) -> None:
    recipe = parse_recipe(tree)
    found = evidence_of(recipe, rows=4)
    task = prepare(recipe)
    trained = Collector(recipe, task, LocalRoles(recipe, task), quiet(), 1).take(1).rollouts
    assert [r.prompt.where for r in found.rollouts] == [r.prompt.where for r in trained]
    assert [r.response_ids for r in found.rollouts] == [r.response_ids for r in trained]


def test_no_teacher_goes_unseen(tmp_path: Path, student_folder: Path, teacher_folder: Path) -> None:
    """Rows of the second teacher stand at the end of the file."""
    rows = [json.loads(line) for line in write_rows(tmp_path / "a", 12, ("math",)).read_text().splitlines()]
    rows += [json.loads(line) for line in write_rows(tmp_path / "b", 6, ("code",)).read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = {"math": teacher_folder, "code": teacher_folder}
    recipe = parse_recipe(opd_tree(tmp_path, student_folder, teachers, data={"shuffle": False}))
    assert chosen_rows(recipe, prepare(recipe), 5) == [0, 1, 2, 3, 4, 12, 13, 14, 15]


def test_sft_says_what_does_not_apply(tmp_path: Path, student_folder: Path) -> None:
    found = evidence_of(parse_recipe(sft_tree(tmp_path, student_folder)))
    verdicts = {finding.check: finding.verdict for finding in (check(found) for check in CHECKS)}
    absent = {"sampler", "steadiness", "gap", "overlap", "teachers", "rewards", "verifiers"}
    assert {check for check, verdict in verdicts.items() if verdict == "unmeasured"} == absent
    assert "demonstrations" in responses_end(found).measured


def test_adapters_leave_the_reference_alone(tree: Tree) -> None:
    """With LoRA the student's base is the reference, so before training the two agree."""
    recipe = parse_recipe(merged(tree, {"student": {"lora": {"rank": 2}}}))
    found = evidence_of(recipe, rows=4)
    for own_R, scores in zip(found.own_logprobs, found.scores, strict=True):
        assert scores is not None and scores.reference_logprobs_R is not None
        torch.testing.assert_close(own_R, scores.reference_logprobs_R, rtol=0, atol=1e-4)
    assert run_fits(found).verdict == "unmeasured"


def test_a_server_is_scored_and_the_rest_is_said_to_be_unmeasured(
    tmp_path: Path, tree: Tree, teacher_folder: Path
) -> None:
    with FakeServer(teacher_folder, "expert") as fake:
        server = {"url": fake.url, "name": "expert", "retries": 0}
        changes = {"teachers": {"math": {"server": server}}, "validation": held_out(tmp_path, 4, ("math",))}
        found = evidence_of(parse_recipe(merged(tree, changes)), rows=4, problems=4)
    assert student_is_near(found).verdict == teachers_are_better(found).verdict == "unmeasured"
    assert "server" in student_is_near(found).measured and "server" in teachers_are_better(found).measured
    assert scores_are_steady(found).figures["tolerance"] == 0.05
    assert teachers_differ(found).figures["mean_size"] > 1


# --- tokens and views -----------------------------------------------------------------------------------------------


def test_special_tokens(healthy: Evidence, tree: Tree, make_model: MakeModel) -> None:
    is_fine(models_agree(healthy))
    other = make_model(1)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(other)
    found = evidence_of(parse_recipe(merged(tree, {"teachers": {"math": {"model": str(other)}}})), rows=4)
    is_sick(
        models_agree(found),
        "warning",
        "eos_token",
        "'<|endoftext|>'",
        "may find the student's ending unlikely",
    )


def test_an_end_that_does_not_stop(healthy: Evidence, tree: Tree, make_model: MakeModel) -> None:
    """The template ends turns with <|im_end|>, sampling stops at <|endoftext|>: the classic."""
    is_fine(turns_end(healthy))
    student = make_model(0, eos_token_id=0)
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(student)
    GenerationConfig(eos_token_id=0, pad_token_id=0, do_sample=True).save_pretrained(student)
    changes = {"student": {"model": str(student)}, "data": {"max_response_tokens": 64}}
    found = evidence_of(parse_recipe(merged(tree, changes)))
    past = sum(EOS in rollout.response_ids for rollout in found.rollouts)
    assert past
    is_sick(turns_end(found), "stop", "'<|im_end|>'", f"{past} of 12 responses run on", f"add the id {EOS}")
    never = [replace(r, response_ids=[4, 5, 6]) for r in found.rollouts]
    is_sick(turns_end(replace(found, rollouts=never)), "warning", "0 of 12 responses")


def test_models_that_do_not_know_the_end(healthy: Evidence) -> None:
    """A reference, as a base model often, that finds the student's ends next to impossible."""
    scores = []
    for one in healthy.scores:
        assert one is not None and one.reference_logprobs_R is not None
        changed_R = one.reference_logprobs_R.clone()
        changed_R[-1] -= 9
        scores.append(replace(one, reference_logprobs_R=changed_R))
    is_sick(turns_end(replace(healthy, scores=scores)), "warning", "reference -9.0", "rewards every end")


def test_views_that_open_the_answer_otherwise(healthy: Evidence, tree: Tree) -> None:
    is_fine(views_end_alike(healthy))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\nthink:"
    )
    view = {"chat_template_kwargs": {"chat_template": template}}
    found = evidence_of(parse_recipe(merged(tree, {"teachers": {"math": {"view": view}}})), rows=4)
    is_sick(views_end_alike(found), "warning", "teacher math 'ink:'")


def test_the_first_response_token_is_aligned(tree: Tree, teacher_folder: Path, student_folder: Path) -> None:
    """Prompts are those of Transformers' tokenizer, and the score of the first response token is of its place there."""
    view = {"template": "{prompt} hint: {response}"}
    found = evidence_of(parse_recipe(merged(tree, {"teachers": {"math": {"view": view}}})), rows=4)
    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    for row, rollout, scores in zip(found.seen, found.rollouts, found.scores, strict=False):
        assert scores is not None and scores.teacher_logprobs_R is not None
        prompt = rollout.prompt
        texts = {"student": prompt.messages[0]["content"], "reference": prompt.messages[0]["content"]}
        texts["teacher math"] = f"{prompt.messages[0]['content']} hint: {prompt.fields['response']}"
        for role, text in texts.items():
            chat = [{"role": "user", "content": text}]
            whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            assert row.prompts[role] == whole, role
        with torch.no_grad():
            theirs = row_logprobs(
                plain64(teacher_folder), row.prompts["teacher math"], rollout.response_ids, 1.0
            )
        first = rollout.response_ids[0]
        assert float(scores.teacher_logprobs_R[0]) == pytest.approx(float(theirs[0, first]), abs=1e-4)
    shown = screen(Diagnosis("title", [], found.seen, tokenizer), 100)
    row = found.seen[0]
    answer = next(line for line in shown if line.startswith("  answer"))
    before = shown[shown.index(answer) - 1]
    one = visible(tokenizer.decode([row.response_ids[0]])).replace(" ", "␣")
    assert answer.split() == ["answer", one, one], "both columns"
    assert before.split() == ["-1", "\\n", "\\n"], "the last prompt token of both stands right above"


def test_prompts_cannot_take_over_the_terminal(tree: Tree, tmp_path: Path) -> None:
    assert visible("\x1b[31mred\u202eder\n") == "\\x1b[31mred\\u202eder\\n"
    rows = write_rows(tmp_path / "\x1b[31m[bold]\u202e.jsonl", 4, ("math",))
    found = evidence_of(parse_recipe(merged(tree, {"data": {"files": [str(rows)]}})), rows=4)
    finding = Finding("\x1b[2J", "stop", "\x1b[2J", "\x1b[2J", "\x1b[2J")
    shown = "\n".join(screen(Diagnosis("\x1b[2J", [finding], found.seen, found.task.tokenizer), 80))
    assert "[bold]" in shown and "\\x1b[31m" in shown
    assert not {"\x1b", "\u202e"} & {*shown}


def screen(diagnosis: Diagnosis, width: int) -> list[str]:
    file = io.StringIO()
    show(Console(width=width, file=file, highlight=False), diagnosis)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_screen(healthy: Evidence, width: int) -> None:
    findings = [check(healthy) for check in CHECKS]
    shown = screen(Diagnosis("gopd doctor", findings, healthy.seen, healthy.task.tokenizer), width)
    assert max(map(len, shown)) <= width
    assert all(any(finding.check in line for line in shown) for finding in findings)


# --- responses and the sampler --------------------------------------------------------------------------------------


def test_cut_and_empty_responses(healthy: Evidence) -> None:
    is_fine(responses_end(healthy))
    cut = quickstart("data.max_response_tokens=3", rows=4)
    assert responses_end(cut).figures["truncated"] == 1
    is_sick(responses_end(cut), "stop", "100% cut at 3", "max_response_tokens")
    empty = [replace(r, response_ids=[1], text=" \n") for r in healthy.rollouts[:4]] + [*healthy.rollouts[4:]]
    is_sick(responses_end(replace(healthy, rollouts=empty)), "warning", "25% empty")


def test_circles(healthy: Evidence) -> None:
    loop = replace(healthy.rollouts[0], response_ids=[7, 8, 9] * 20)
    assert goes_in_circles(loop)
    assert not goes_in_circles(replace(loop, response_ids=list(range(60))))
    assert not goes_in_circles(replace(loop, response_ids=[7, 8, 9] * 5)), "too short to tell"
    is_sick(responses_end(replace(healthy, rollouts=[loop, *healthy.rollouts])), "warning", "6% in circles")


def test_a_sampler_with_other_weights(healthy: Evidence, tree: Tree) -> None:
    is_fine(sampler_matches_trainer(healthy))
    recipe = parse_recipe(tree)
    found = with_roles(recipe, sampler=perturbed(recipe, 0.005))
    is_sick(sampler_matches_trainer(found), "stop", "report this as a bug")
    engine = replace(found, exact=False)
    finding = sampler_matches_trainer(engine)
    gap_T = torch.cat(
        [own_R - r.sampler_logprobs_R for own_R, r in zip(found.own_logprobs, found.rollouts, strict=True)]  # type: ignore[operator]
    ).double()
    assert finding.figures["mean"] == pytest.approx(float(gap_T.abs().mean()))
    assert finding.figures["above_cap"] == pytest.approx(float((gap_T.exp() >= 5).double().mean()))
    is_sick(finding, "warning", "correction.mode")
    wild = replace(with_roles(recipe, sampler=perturbed(recipe, 0.5)), exact=False)
    is_sick(sampler_matches_trainer(wild), "stop", "another model")
    assert sampler_matches_trainer(wild).figures["above_cap"] > 0


def perturbed(recipe: AnyRecipe, size: float) -> TorchSampler:
    model = load(Path(recipe.student.model))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return TorchSampler(model, 8)


def with_roles(
    recipe: AnyRecipe, *, sampler: TorchSampler | None = None, scorer: type[Scorer] | None = None
) -> Evidence:
    """The evidence where one of the roles is another."""
    task, said = prepared(recipe)
    roles = LocalRoles(recipe, task)
    roles.sampler = sampler or roles.sampler
    if scorer is not None:
        roles.scorer = scorer(recipe, roles.learner.student, device=CPU, dtype=torch.float32)  # type: ignore[arg-type]
    rows = task.data.part(chosen_rows(recipe, task, 12))
    empty = Evidence(
        Request(recipe, "recipe.yaml", problems=0), task, {}, said, DEVICE, 1, rows, torch.float32
    )
    return look(empty, roles, quiet())


# --- scoring --------------------------------------------------------------------------------------------------------


class Skewed(Scorer):
    """A teacher whose log-probs are off."""

    def skew(self, place: int, tokens: int) -> Tensor:
        raise NotImplementedError

    def score(
        self,
        rollouts: Sequence[Rollout],
        *,
        temperature: float,
        keep_hidden: bool = False,
        done: Done = silent,
    ) -> list[Scores | None]:
        scores = super().score(rollouts, temperature=temperature, done=done)
        return [
            None
            if s is None or s.teacher_logprobs_R is None
            else replace(
                s, teacher_logprobs_R=s.teacher_logprobs_R + self.skew(place, len(s.teacher_logprobs_R))
            )
            for place, s in enumerate(scores)
        ]


class Noisy(Skewed):
    """As with dropout left on."""

    size = 0.05

    def skew(self, place: int, tokens: int) -> Tensor:
        return self.size * torch.rand(tokens)


class FollowsOrder(Skewed):
    """Scores that depend on the company a row is in."""

    def skew(self, place: int, tokens: int) -> Tensor:
        return torch.full((tokens,), 0.002 * place)


def test_a_teacher_that_says_something_else_each_time(healthy: Evidence, tree: Tree) -> None:
    is_fine(scores_are_steady(healthy))
    recipe = parse_recipe(tree)
    noisy = scores_are_steady(with_roles(recipe, scorer=Noisy))
    is_sick(noisy, "stop", "dropout")
    assert all(0.02 < moved <= 0.05 for moved in noisy.figures["moved"].values())
    ordered = scores_are_steady(with_roles(recipe, scorer=FollowsOrder))
    assert ordered.figures["moved"]["when scored again"] == 0
    assert ordered.figures["moved"]["in another order and packing"] == pytest.approx(0.022, abs=1e-3)
    assert ordered.verdict == "stop"


def test_a_teacher_that_is_its_reference(
    healthy: Evidence, tree: Tree, student_folder: Path, teacher_folder: Path
) -> None:
    is_fine(teachers_differ(healthy))
    same = merged(tree, {"teachers": {"math": {"model": str(student_folder)}}})
    for scale in (1.25, 1.0):
        finding = teachers_differ(
            evidence_of(parse_recipe(merged(same, {"objective": {"reward_scale": scale}})))
        )
        is_sick(finding, "stop", "nothing to learn")
        assert finding.figures["mean_size"] < 1e-5
    both = merged(tree, {"reference": {"model": str(teacher_folder)}})
    is_sick(teachers_differ(evidence_of(parse_recipe(both))), "warning", "the reward scale changes nothing")


def test_the_reference_gap(tree: Tree, student_folder: Path, teacher_folder: Path) -> None:
    """Against float64; between random models it is huge."""
    found = evidence_of(parse_recipe(tree))
    gaps = []
    for rollout in found.rollouts:
        where = (rollout.prompt_ids, rollout.response_ids, 1.0)
        pick = (torch.arange(len(rollout.response_ids)), torch.tensor(rollout.response_ids))
        teacher, student = plain64(teacher_folder), plain64(student_folder)
        gaps.append((row_logprobs(teacher, *where) - row_logprobs(student, *where))[pick].detach())
    gap_T = torch.cat(gaps)
    finding = teachers_differ(found)
    assert finding.figures["mean"] == pytest.approx(float(gap_T.mean()), abs=1e-4)
    assert finding.figures["mean_size"] == pytest.approx(float(gap_T.abs().mean()), abs=1e-4)
    is_sick(finding, "warning", "ℓ_T − ℓ_R")
    first = found.scores[0]
    assert first is not None and first.teacher_logprobs_R is not None
    impossible = replace(first, teacher_logprobs_R=torch.full_like(first.teacher_logprobs_R, -torch.inf))
    lost = replace(found, scores=[impossible, *found.scores[1:]])
    is_sick(teachers_differ(lost), "stop", f"{len(found.rollouts[0].response_ids)} tokens have no finite gap")


def test_overlap_by_brute_force(tree: Tree, student_folder: Path, teacher_folder: Path) -> None:
    """Both distributions by Transformers in float64, token by token; micro-batches of a few rows, temperature 0.7."""
    changes = {"sampler": {"temperature": 0.7}, "train": {"tokens_per_micro_batch": 64}}
    found = evidence_of(parse_recipe(merged(tree, changes)))
    shared, sampled, mass = [], [], []
    for rollout in found.rollouts:
        where = (rollout.prompt_ids, rollout.response_ids, 0.7)
        own, theirs = (row_logprobs(plain64(f), *where).detach() for f in (student_folder, teacher_folder))
        for own_V, theirs_V, token in zip(own, theirs, rollout.response_ids, strict=True):
            top = set(theirs_V.argsort(descending=True)[:TOP_K].tolist())
            shared.append(len(top & set(own_V.argsort(descending=True)[:TOP_K].tolist())) / TOP_K)
            sampled.append(token in top)
            mass.append(sum(float(own_V[v].exp()) for v in top))
    assert found.overlaps is not None
    overlap = found.overlaps["math"]
    assert overlap.tokens == len(mass) and overlap.top_k == TOP_K
    assert overlap.shared == pytest.approx(sum(shared) / len(shared), abs=1e-9)
    assert overlap.sampled == pytest.approx(sum(sampled) / len(sampled), abs=1e-9)
    assert overlap.mass == pytest.approx(sum(mass) / len(mass), abs=1e-5)


def test_a_student_far_from_its_teacher_starts_cold(
    healthy: Evidence, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the commands that are printed do what they say."""
    is_fine(student_is_near(healthy))
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path / "mine.yaml", merged(tree, {"student": {"view": {"suffix": " {think}"}}}))
    request = Request(load_recipe(path), str(path), ["optim.lr=0.002"])
    task, said = prepared(request.recipe)
    finding = student_is_near(gather(request, task, said, (DEVICE, 1), quiet()))
    is_sick(finding, "warning", "cold-start")
    shown = screen(Diagnosis("title", [finding]), 80)
    assert all(line in shown for line in finding.commands.splitlines()), "lines are whole and can be pasted"
    generate, begin, *recipe, end, train, again = finding.commands.splitlines()
    assert begin == "cat > cold-start.yaml <<'END'" and end == "END"
    assert shlex.split(again)[:4] == ["gopd", "doctor", str(path), "optim.lr=0.002"]
    Path("cold-start.yaml").write_text("\n".join(recipe) + "\n")
    for line in (generate, train):
        assert cli.main(shlex.split(line)[1:]) == 0
    student = shlex.split(again)[-1].removeprefix("student.model=")
    assert (Path(student) / "model.safetensors").exists()
    assert load_recipe("cold-start.yaml").student.view == request.recipe.student.view


# --- teachers -------------------------------------------------------------------------------------------------------


def test_teachers_on_validation_problems(healthy: Evidence) -> None:
    is_fine(teachers_are_better(healthy))
    figures = teachers_are_better(healthy).figures
    assert figures.keys() == {"math", "code"}
    (contest,) = figures["math"].values()
    assert contest["problems"] == 48
    assert contest["difference"] == pytest.approx(contest["teacher"] - contest["other"])
    assert 0 < contest["low"] < contest["difference"] < contest["high"]


def test_teacher_and_reference_swapped() -> None:
    """The base teaches its own expert."""
    sick = quickstart(
        "student.model=builtin:math", "teachers={math: {model: builtin:base}}", "data.route=math",
        "data.keep_sources=[tiny/arithmetic]", "validation.keep_sources=[tiny/arithmetic]", rows=4, problems=48,
    )  # fmt: skip
    is_sick(teachers_are_better(sick), "stop", "swapped", "student (its reference)")
    found = quickstart(
        "reference={model: builtin:math}", "teachers={math: {model: builtin:base}}", "data.route=math",
        "data.keep_sources=[tiny/arithmetic]", "validation.keep_sources=[tiny/arithmetic]", rows=4, problems=48,
    )  # fmt: skip
    parts = {contest.against: contest.difference for contest in found.contests}
    assert parts["reference"].high < 0, "against the expert as reference"
    assert parts["student"].mean == 0, "the student is the teacher"
    is_sick(teachers_are_better(found), "stop", "worse than the reference", "no difference is shown")


def test_teachers_without_problems(healthy: Evidence, tree: Tree, tmp_path: Path) -> None:
    found = replace(healthy, contests=[], request=replace(healthy.request, problems=0))
    assert "--problems 0" in teachers_are_better(found).measured
    assert "no validation section" in teachers_are_better(evidence_of(parse_recipe(tree), 4, 4)).measured
    ungraded = merged(tree, {"validation": held_out(tmp_path, 4, ("math",))})
    found = evidence_of(parse_recipe(ungraded), 4, 4)
    assert teachers_are_better(found).verdict == "unmeasured"
    assert "with a verifier" in teachers_are_better(found).measured
    assert len(problems_of(healthy.task, "math", 7)) == 7


# --- rewards and verifiers ------------------------------------------------------------------------------------------


def grpo_tree(folder: Path, student: str, **changes: Any) -> Tree:
    tree: Tree = {
        "method": "grpo",
        "student": {"model": student},
        "sampler": {"samples_per_prompt": 4},
        "data": {
            "files": ["builtin:train.parquet"],
            "keep_sources": ["tiny/arithmetic"],
            "max_response_tokens": 32,
        },
        "train": {"steps": 2, "prompts_per_step": 8, "device": "cpu"},
        "tracking": {"folder": str(folder / "runs"), "name": "run"},
    }
    return merged(tree, changes)


def test_rewards_without_a_difference(tmp_path: Path, student_folder: Path, healthy: Evidence) -> None:
    found = evidence_of(parse_recipe(grpo_tree(tmp_path, "builtin:base")), rows=6)
    is_fine(rewards_differ(found))
    groups: dict[int, set[float | None]] = {}
    for rollout in found.rollouts:
        groups.setdefault(rollout.prompt.index, set()).add(rollout.reward)
    uniform = sum(len(rewards) == 1 for rewards in groups.values()) / 6
    assert rewards_differ(found).figures["uniform"] == pytest.approx(uniform)
    assert 0 < rewards_differ(found).figures["mean"] < 1
    never = evidence_of(parse_recipe(grpo_tree(tmp_path, str(student_folder))), rows=6)
    is_sick(rewards_differ(never), "stop", "100% all wrong")
    assert rewards_differ(healthy).verdict == "unmeasured", "a recipe that learns from teachers alone"


def test_gold_answers_that_are_refused(tmp_path: Path, student_folder: Path) -> None:
    def judged(sick: int, of: int) -> Finding:
        rows = write_rows(tmp_path / "rows.jsonl", of, response=None)
        entries = lines(rows)
        for entry in entries[:sick]:
            entry["reward_model"]["ground_truth"] = "\\frac{1}{2"
        rows.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        data = {"files": [str(rows)], "keep_sources": [], "verifier": "math"}
        tree = grpo_tree(tmp_path, str(student_folder), data=data)
        return verifiers_judge(evidence_of(parse_recipe(tree), rows=of))

    is_fine(judged(0, 8))
    is_sick(judged(1, 8), "warning", "7 of 8 gold answers", "rows.jsonl:")
    is_sick(judged(5, 8), "stop", "3 of 8 gold answers", "and 2 more")


def test_programs_and_reference_solutions(healthy: Evidence, tmp_path: Path, student_folder: Path) -> None:
    is_fine(verifiers_judge(healthy))
    assert "no reference solution" in verifiers_judge(healthy).measured
    recipe = load_recipe(QUICKSTART, ["validation.columns.response=extra_info.ref_solution"])
    found = verifiers_judge(replace(healthy, request=replace(healthy.request, recipe=recipe)))
    is_fine(found)
    assert found.figures["reference solutions are graded right"] == [16, 16]
    tests = json.dumps({"inputs": [""], "outputs": [""]})
    rows = write_rows(tmp_path / "rows.jsonl", 8, reward_model={"ground_truth": tests}, response="no program")
    data = {"files": [str(rows)], "keep_sources": [], "verifier": "code"}
    sick = evidence_of(parse_recipe(grpo_tree(tmp_path, str(student_folder), data=data)), rows=8)
    is_sick(
        verifiers_judge(sick), "stop", "8 of 8 programs that do nothing pass", "0 of 8 reference solutions"
    )
    tests = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    write_rows(tmp_path / "rows.jsonl", 8, reward_model={"ground_truth": tests}, response="no program")
    sick = evidence_of(parse_recipe(grpo_tree(tmp_path, str(student_folder), data=data)), rows=8)
    is_sick(verifiers_judge(sick), "warning", "0 of 8 programs that do nothing pass", "columns.response")


# --- resources ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit(
    healthy: Evidence, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_fine(run_fits(healthy))
    assert run_fits(healthy).figures["steps"] == 80
    small = replace(healthy, device=replace(DEVICE, memory=20e6))
    is_sick(run_fits(small), "stop", "GB", "gradient_checkpointing")
    assert run_fits(replace(healthy, device=None)).verdict == "unmeasured"

    def loaded(*_: object) -> None:
        pytest.fail("weights that do not fit were loaded")

    monkeypatch.setattr(resources, "this_cpu", lambda: replace(DEVICE, memory=1e5))
    monkeypatch.setattr(command, "gather", loaded)
    diagnosis = command.examine(Request(parse_recipe(tree), "mine.yaml"), quiet())
    is_sick(diagnosis.findings[0], "stop", "weights alone", "scoring.memory_gb")
    assert diagnosis.verdict == "stop"


def test_weights_are_counted_as_they_are(tree: Tree, student_folder: Path, teacher_folder: Path) -> None:
    models = [AutoModelForCausalLM.from_pretrained(f) for f in (student_folder, teacher_folder)]
    needed = sum(4 * p.numel() for model in models for p in model.parameters())
    recipe = parse_recipe(tree)
    assert resources.weights_too_large(recipe, replace(DEVICE, memory=needed * 1.1)) is None
    too_large = resources.weights_too_large(recipe, replace(DEVICE, memory=needed * 1.05))
    assert too_large is not None and too_large.figures["weight_bytes"] == needed
