"""Whole runs of tiny models: what they leave behind, that the numbers agree with each other, and that it learns."""

from __future__ import annotations

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import gopd
from conftest import SPECIAL, MakeModel
from gopd import loop
from gopd.cli import main
from gopd.console import Display
from gopd.recipe_file import load_recipe, parse_recipe
from gopd.setup import LocalRoles, prepare
from runs import (
    Tree,
    held_out,
    lines,
    merged,
    opd_tree,
    rollouts,
    saved_steps,
    sft_tree,
    student_weights,
    write_recipe,
    write_rows,
)

EVERY_STEP = {
    "step", "loss", "grad_norm", "lr", "entropy", "response_tokens/mean", "response_tokens/max", "truncated",
    "memory/peak_gb", "seconds/update", "tokens_per_second/update",
}  # fmt: skip
EVERY_OPD_STEP = EVERY_STEP | {
    "kl_to_target", "seconds/sample", "seconds/verify", "seconds/score",
    "tokens_per_second/sample", "tokens_per_second/score",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> list[Path]:
    return [make_model(seed) for seed in range(3)]


def run(tree: Tree) -> tuple[Path, list[Tree]]:
    """The run folder and its metrics, after what holds for every run was checked."""
    recipe = parse_recipe(tree)
    folder = gopd.train(recipe)
    assert folder == Path(recipe.tracking.folder) / str(recipe.tracking.name)
    assert load_recipe(folder / "recipe.yaml") == recipe
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["torch"] == torch.__version__ and versions["gopd"] and versions["python"]
    metrics = lines(folder / "metrics.jsonl")
    assert [entry["step"] for entry in metrics] == list(range(1, len(metrics) + 1))
    assert all(math.isfinite(value) for entry in metrics for value in entry.values())
    assert [p for p in folder.rglob(".*") if p.name != ".lock"] == []
    assert saved_steps(folder)[-1] == len(metrics)
    return folder, metrics


def mean(rows: list[Tree], key: str) -> float:
    """Over the tokens of all rows."""
    values = [value for row in rows for value in row[key]]
    return sum(values) / len(values)


@pytest.mark.parametrize(
    "objective",
    [
        {"estimator": "sampled"},
        {"estimator": "sampled", "control_variate": True},
        {"estimator": "full"},
        {"estimator": "topk", "top_k": 8},
        {"estimator": "sampled", "reward_scale": 1.0},
        {"estimator": "full", "reward_scale": 1.0},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_two_teachers_and_every_estimator(models: list[Path], tmp_path: Path, objective: Tree) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1], "b": models[2]}, objective=objective)
    folder, metrics = run(tree)
    assert len(metrics) == 3
    scale = objective.get("reward_scale", 1.25)
    for entry in metrics:
        rows = rollouts(folder, entry["step"])
        assert [row["step"] for row in rows] == [entry["step"]] * 4
        assert {row["route"] for row in rows} <= {"a", "b"}
        for name in {row["route"] for row in rows}:
            assert entry[f"teacher/{name}/advantage_mean"] == pytest.approx(
                mean([row for row in rows if row["route"] == name], "advantages"), abs=1e-5
            )
        assert entry.keys() >= EVERY_OPD_STEP
        assert entry["response_tokens/max"] == max(len(row["response_ids"]) for row in rows)
        assert entry["truncated"] == sum(not row["finished"] for row in rows) / 4
        assert entry["kl_to_target"] == pytest.approx(mean(rows, "kls"), abs=1e-5)
        assert entry["entropy"] == pytest.approx(mean(rows, "entropies"), abs=1e-5)
        assert entry["lr"] == 1e-3
        for row in rows:
            assert row["where"].endswith(f"train.jsonl:{row['row'] + 1}")
            assert row["route"] == "ab"[row["row"] % 2]
            assert "".join(token for token in row["tokens"] if token not in SPECIAL) == row["response"]
            assert row["finished"] == (row["tokens"][-1] == "<|im_end|>")
            check_tokens(row, scale, objective)


def check_tokens(row: Tree, scale: float, objective: Tree) -> None:
    """The per-token numbers satisfy the definitions that connect them."""
    student, teacher = torch.tensor(row["student_logprobs"]), torch.tensor(row["teacher_logprobs"])
    assert torch.allclose(torch.tensor(row["sampler_logprobs"]), student, atol=1e-4)
    if scale == 1:
        assert row["reference_logprobs"] is None and row["log_partition"] is None
        advantage = teacher - student
    else:
        reference = torch.tensor(row["reference_logprobs"])
        advantage = (teacher - student) + (scale - 1) * (teacher - reference)
    stored = torch.tensor(row["advantages"])
    if objective.get("control_variate"):
        advantage = advantage + torch.tensor(row["kls"]) - torch.tensor(row["log_partition"])
    assert torch.allclose(stored, advantage, atol=2e-4)
    if objective["estimator"] in ("full", "topk"):
        assert min(row["kls"]) >= 0


def test_without_a_reference_none_is_in_memory(models: list[Path], tmp_path: Path) -> None:
    for scale, expected in ((1.0, 1), (1.25, 2)):
        tree = opd_tree(tmp_path, models[0], {"a": models[1]}, objective={"reward_scale": scale})
        recipe = parse_recipe(tree)
        scorer = LocalRoles(recipe, prepare(recipe)).scorer
        assert scorer is not None and len(scorer.models) == expected
        assert (scorer.routes["a"].reference is None) == (scale == 1)


def test_the_student_is_a_plain_folder_with_the_trained_weights(models: list[Path], tmp_path: Path) -> None:
    folder, _ = run(opd_tree(tmp_path, models[0], {"a": models[1]}))
    trained = load_file(folder / "checkpoints" / "step-00000003" / "weights.safetensors")
    before = load_file(models[0] / "model.safetensors")
    module: Any = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    state = module.state_dict()
    assert trained.keys() <= state.keys()
    for name, weight in trained.items():
        assert torch.equal(state[name], weight)
        assert not torch.equal(before[name], weight)
    own = AutoTokenizer.from_pretrained(models[0])
    exported = AutoTokenizer.from_pretrained(folder / "student")
    assert exported.get_vocab() == own.get_vocab() and exported.chat_template == own.chat_template
    assert module.generation_config.eos_token_id == own.eos_token_id
    card = (folder / "student" / "README.md").read_text()
    assert (
        f"| a | {models[1].name} | 1.25 |" in card
        and "reward_scale: 1.25" in card
        and str(models[1]) not in card
    )


def test_lora_trains_adapters_and_exports_the_merged_student(models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, student={"lora": {"rank": 2}}, optim={"lr": 1e-2})
    folder, _ = run(tree)
    trained = load_file(folder / "checkpoints" / "step-00000003" / "weights.safetensors")
    assert all("lora_" in name for name in trained)
    before, after = load_file(models[0] / "model.safetensors"), student_weights(folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.endswith("_proj.weight")}
    name = "model.layers.0.self_attn.q_proj"
    up, down = (next(trained[n] for n in trained if name in n and f"lora_{x}" in n) for x in "BA")
    step = (64.0 / 2) * up @ down
    assert torch.allclose(after[f"{name}.weight"] - before[f"{name}.weight"], step, atol=1e-5)


def test_mini_batches_after_the_first_are_corrected(models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, optim={"lr": 1e-2})
    _, plain = run(tree)
    assert not any(key.startswith("correction/") for entry in plain for key in entry)
    two = merged(tree, {"train": {"mini_batches": 2}, "tracking": {"name": "two"}})
    folder, metrics = run(two)
    state = json.loads((folder / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert state["updates"] == 6
    for entry in metrics:
        first, second = rollouts(folder, entry["step"])[:2], rollouts(folder, entry["step"])[2:]
        assert logprob_gap(first) < 1e-4 < logprob_gap(second)
        weights = [
            min(math.exp(s - e), 5.0)
            for row in second
            for s, e in zip(row["student_logprobs"], row["sampler_logprobs"], strict=True)
        ]
        assert entry["correction/mean"] == pytest.approx(sum(weights) / len(weights), rel=1e-3)
        assert entry["correction/max"] == pytest.approx(max(weights), rel=1e-3)
        assert entry["correction/min"] == pytest.approx(min(weights), rel=1e-3)
    off = merged(two, {"correction": {"mode": "off"}, "tracking": {"name": "off"}})
    assert not any(key.startswith("correction/") for entry in run(off)[1] for key in entry)


def logprob_gap(rows: list[Tree]) -> float:
    """The largest difference between the sampler's and the trainer's log-probs."""
    pairs = [zip(r["student_logprobs"], r["sampler_logprobs"], strict=True) for r in rows]
    return max(abs(s - e) for pair in pairs for s, e in pair)


def test_two_samples_per_prompt_differ(models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, sampler={"samples_per_prompt": 2})
    folder, _ = run(tree)
    rows = rollouts(folder, 1)
    assert [row["sample"] for row in rows] == [0, 1] * 4
    pairs = [(rows[i], rows[i + 1]) for i in range(0, 8, 2)]
    assert all(one["row"] == two["row"] for one, two in pairs)
    assert any(one["response_ids"] != two["response_ids"] for one, two in pairs)


def test_every_step_and_every_seed_draws_its_own_responses(models: list[Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 4, ("a",))
    tree = opd_tree(
        tmp_path,
        models[0],
        {"a": models[1]},
        data={"shuffle": False},
        optim={"lr": 1e-12},
        train={"steps": 2},
    )
    folder, _ = run(tree)
    other, _ = run(merged(tree, {"train": {"seed": 1}, "tracking": {"name": "other"}}))
    drawn = [[row["response"] for row in rollouts(*one)] for one in ((folder, 1), (folder, 2), (other, 1))]
    for row in range(4):
        assert len({responses[row] for responses in drawn}) == 3


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_gradient_checkpointing_changes_no_number(
    models: list[Path], tmp_path: Path, lora: Tree | None
) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, student={"lora": lora}, train={"steps": 2})
    plain, _ = run(tree)
    saving, _ = run(
        merged(tree, {"student": {"gradient_checkpointing": True}, "tracking": {"name": "saving"}})
    )
    before = load_file(models[0] / "model.safetensors")
    one, two = student_weights(plain), student_weights(saving)
    assert any(not torch.equal(before[name], one[name]) for name in one)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6)


def test_epochs_visit_every_prompt_that_often(models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, train={"steps": None, "epochs": 2})
    folder, metrics = run(tree)
    assert len(metrics) == 6
    rows = sorted(row["row"] for step in range(1, 7) for row in rollouts(folder, step))
    assert rows == sorted([*range(12)] * 2)


def test_sft_learns_its_demonstrations(models: list[Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 4)
    tree = sft_tree(
        tmp_path, models[0], optim={"lr": 1e-2}, train={"steps": 25}, data={"max_response_tokens": 9}
    )
    folder, metrics = run(tree)
    assert metrics[0].keys() >= EVERY_STEP and "kl_to_target" not in metrics[0]
    assert metrics[-1]["loss"] < 0.2 * metrics[0]["loss"]
    assert not any((folder / "rollouts").iterdir())
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+3="}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(prompt, max_new_tokens=9, do_sample=False)
    assert tokenizer.decode(out[0, prompt.shape[1] :]) == "6.<|im_end|>"


def test_validation_measures_the_student_and_each_teacher(models: list[Path], tmp_path: Path) -> None:
    section = held_out(tmp_path, 4, ("a", "b"), teachers=True, samples_per_prompt=2, every=2, verifier="math")
    tree = opd_tree(tmp_path, models[0], {"a": models[1], "b": models[2]}, validation=section)
    folder, _ = run(tree)
    entries = lines(folder / "validation.jsonl")
    assert [(entry["step"], entry["model"]) for entry in entries] == [
        (0, "student"), (0, "teacher a"), (0, "teacher b"), (2, "student"), (3, "student"),
    ]  # fmt: skip
    for entry in entries:
        assert entry["domains"].keys() == {"sums", "more sums"}
        for domain in entry["domains"].values():
            assert (domain["problems"], domain["samples"]) == (2, 4)
            assert 0 <= domain["low"] <= domain["accuracy"] <= domain["high"] <= 1
            assert (domain["kl_to_target"] is None) == (entry["model"] != "student")
    card = (folder / "student" / "README.md").read_text()
    assert "Validation after step 3" in card
    names = {p.relative_to(folder / "validation").as_posix() for p in folder.glob("validation/*/*.parquet")}
    assert names == {
        "student/step-00000000.parquet", "student/step-00000002.parquet", "student/step-00000003.parquet",
        "teacher-a/step-00000000.parquet", "teacher-b/step-00000000.parquet",
    }  # fmt: skip


def test_the_best_validation_keeps_its_checkpoint(models: list[Path], tmp_path: Path) -> None:
    """Steps that first help and then ruin the student: the best is neither the first nor the last."""
    tree = opd_tree(
        tmp_path,
        models[0],
        {"a": models[1]},
        objective={"estimator": "full", "reward_scale": 1.0},
        validation=held_out(tmp_path, 4, every=1),
        train={"steps": 7, "prompts_per_step": 8},
        optim={"lr": 0.03},
        checkpoint={"every": 0, "keep_last": 1, "keep_best": True},
    )
    folder, _ = run(tree)
    kls = {e["step"]: domain_mean(e) for e in lines(folder / "validation.jsonl")}
    best = min((kl, step) for step, kl in kls.items() if step > 0)[1]
    assert saved_steps(folder) == sorted({best, 7})
    assert best not in (1, 7), f"choose other numbers: {kls}"
    state = json.loads((folder / "checkpoints" / "step-00000007" / "state.json").read_text())
    assert state["best_step"] == best and state["best_score"] == pytest.approx(-kls[best])


def test_the_best_is_a_trained_student_even_when_training_only_hurts(
    models: list[Path], tmp_path: Path
) -> None:
    tree = opd_tree(
        tmp_path,
        models[0],
        {"itself": models[0]},
        objective={"reward_scale": 1.0},
        validation=held_out(tmp_path, 2, every=1),
        train={"steps": 2},
        optim={"lr": 0.1},
        checkpoint={"every": 0, "keep_last": 1, "keep_best": True},
    )
    folder, _ = run(tree)
    kls = {e["step"]: domain_mean(e) for e in lines(folder / "validation.jsonl")}
    assert kls[0] < min(kls[1], kls[2])
    state = json.loads((folder / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["best_step"] == min((1, 2), key=lambda step: kls[step])
    assert state["best_step"] in saved_steps(folder)


def domain_mean(entry: Tree) -> float:
    kls = [domain["kl_to_target"] for domain in entry["domains"].values()]
    return float(sum(kls) / len(kls))


@pytest.mark.parametrize("estimator", ["full", "sampled"])
def test_the_kl_to_the_target_falls(models: list[Path], tmp_path: Path, estimator: str) -> None:
    tree = opd_tree(
        tmp_path,
        models[0],
        {"a": models[1]},
        objective={"estimator": estimator, "reward_scale": 1.25, "control_variate": estimator == "sampled"},
        validation=held_out(tmp_path, 8, every=0),
        train={"steps": 20, "prompts_per_step": 12},
        optim={"lr": 5e-3},
    )
    folder, _ = run(tree)
    before, after = (domain_mean(entry) for entry in lines(folder / "validation.jsonl"))
    assert after < {"full": 0.6, "sampled": 0.8}[estimator] * before


def test_a_teacher_that_is_the_student_teaches_nothing(models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(
        tmp_path, models[0], {"itself": models[0]}, objective={"reward_scale": 1.0}, train={"steps": 1}
    )
    folder, metrics = run(tree)
    assert all(abs(a) < 1e-4 for row in rollouts(folder, 1) for a in row["advantages"])
    assert metrics[0]["grad_norm"] < 1e-3


def test_checkpoints_keep_the_last_and_rollouts_are_limited(models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(
        tmp_path,
        models[0],
        {"a": models[1]},
        train={"steps": 5},
        checkpoint={"every": 1, "keep_last": 2},
        tracking={"rollouts_every": 2, "rollouts_limit": 3},
    )
    folder, _ = run(tree)
    assert saved_steps(folder) == [4, 5]
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == [
        "step-00000002.parquet",
        "step-00000004.parquet",
    ]
    assert len(rollouts(folder, 2)) == 3


def test_off_a_terminal_the_output_is_plain_lines(
    models: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(opd_tree(tmp_path, models[0], {"a": models[1]}, validation=held_out(tmp_path, 2)))
    out = capfd.readouterr().out
    assert "\x1b" not in out and "\r" not in out
    shown = out.splitlines()
    for step in (1, 2, 3):
        (line,) = [line for line in shown if line.startswith(f"step {step}/3  loss ")]
        assert "  KL " in line
    assert shown[-1] == f"run folder: {tmp_path / 'runs' / 'run'}"
    assert any(line.startswith("validation: student, step 0") for line in shown)
    assert any("student before" in line for line in shown) and any("student after" in line for line in shown)


def test_on_a_terminal_each_phase_has_a_live_bar(models: list[Path], tmp_path: Path) -> None:
    screen = io.StringIO()
    display = Display(Console(file=screen, force_terminal=True, width=120))
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, validation=held_out(tmp_path, 2))
    loop.train(parse_recipe(tree), display=display)
    shown = screen.getvalue()
    for bar in ("steps", "sampling", "scoring", "updating", "validating student"):
        assert bar in shown
    assert "\x1b[" in shown


def test_it_runs_in_another_thread_too(models: list[Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        _, metrics = pool.submit(run, opd_tree(tmp_path, models[0], {"a": models[1]})).result()
    assert [entry["step"] for entry in metrics] == [1, 2, 3]


def test_json_lines_are_those_of_the_run_folder(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else is on standard output; what people read is on standard error."""
    student, teacher, _ = models
    sections: Tree = {"validation": held_out(tmp_path, every=1), "train": {"steps": 2, "prompts_per_step": 2}}
    tree = opd_tree(tmp_path, student, {"only": teacher}, **sections)
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    for resume in ([], ["--resume"]):
        assert main(["train", str(recipe), "--json", *resume]) == 0
        said = capsys.readouterr()
        events = [json.loads(line) for line in said.out.splitlines()]
        folder = tmp_path / "runs" / "run"
        assert events.pop() == {"event": "finished", "run_folder": str(folder)}
        if resume:
            assert events == [] and "this run is finished" in said.err
            break
        steps = [event for event in events if event.pop("event") == "step"]
        assert steps == [{**entry, "steps": 2} for entry in lines(folder / "metrics.jsonl")]
        assert [event for event in events if event not in steps] == lines(folder / "validation.jsonl")
        assert "step 2/2" in said.err and "run folder" in said.err
