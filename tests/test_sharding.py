"""Ranks that share a student do what one does: loss, gradients, weights, checkpoints, export (FSDP2 over gloo)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gopd.packing import deal, micro_batches
from gopd.recipe import OpdRecipe
from gopd.recipe_file import parse_recipe
from gopd.sharding import ALONE
from gopd.types import HiddenHere, Scores
from ranks import play
from tiny import Bench, opd_recipe

SPLIT = (2, 3)
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


@pytest.fixture(scope="module")
def cases(student_folder: Path, llama_folder: Path, teacher_folder: Path) -> dict[str, dict[str, Any]]:
    """Every aggregation and estimator; two routes; correction; tied and untied heads; LoRA; checkpointing."""
    teachers = {"a": {"model": str(teacher_folder)}, "b": {"model": str(teacher_folder), "reward_scale": 1.0}}

    def case(
        routes: list[str] | None = None, on_policy: bool = True, folder: Path = student_folder, **more: Any
    ) -> dict[str, Any]:
        # Several micro-batches a rank; clipping at work; a step that moves the weights, and by a smooth function of the
        # gradients: AdamW with a small epsilon only takes their signs, and rounding decides those near zero.
        optim = {"lr": 0.01, "grad_clip": 0.5, "eps": 0.01}
        sections = {"train": {"tokens_per_micro_batch": 60}, "optim": optim}
        recipe = opd_recipe(folder, teachers, **(sections | more))
        tree = recipe.model_dump(mode="json", exclude={"data": {"files"}})
        tree["data"]["files"] = list(recipe.data.files)
        return {"recipe": tree, "routes": routes or ["a", "b"], "on_policy": on_policy, "keep": False}

    found = {a: case(objective={"aggregation": a}) for a in AGGREGATIONS}
    found |= {e: case(objective={"estimator": e, "top_k": 5}) for e in ("full", "topk")}
    found["corrected"] = case(on_policy=False, correction={"level": "sequence"})
    found["untied"] = case(folder=llama_folder)
    found["lora"] = case(student={"lora": {"rank": 2}})
    found["checkpointing"] = case(student={"gradient_checkpointing": True})
    found["offloaded"] = case(cluster={"offload": True})
    found["wide"] = case(train={"tokens_per_micro_batch": 100_000})
    found["narrow"] = case(train={"tokens_per_micro_batch": 60, "compute_dtype": "bfloat16"})
    found["guarded"] = case(objective={"aggregation": "token-mean"}) | {"guarded": True}
    for name in ("token-mean", "untied", "lora"):
        found[name]["keep"] = True
    return found


@pytest.fixture(scope="module")
def alone(cases: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What one rank does."""
    folder = tmp_path_factory.mktemp("alone")
    found = {n: play(case, ALONE, folder / n if case["keep"] else None) for n, case in cases.items()}
    return found | {"folder": folder}


@pytest.fixture(scope="module")
def shared(
    cases: dict[str, dict[str, Any]], alone: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[int, Any]:
    """By number of ranks: what each of them sees, by case. Two also take up a checkpoint of one."""
    return {ranks: launch(ranks, cases, alone["folder"], tmp_path_factory) for ranks in SPLIT}


def launch(
    ranks: int, cases: dict[str, Any], alone: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(f"ranks{ranks}")
    more = {
        "resumed": cases["token-mean"] | {"start": str(alone / "token-mean" / "checkpoint"), "keep": False}
    }
    job = folder / "job.json"
    job.write_text(json.dumps({"ranks": ranks, "folder": str(folder), "cases": cases | more}))
    program = Path(__file__).with_name("ranks.py")
    subprocess.run([sys.executable, program, job], check=True, timeout=300)
    found: dict[str, Any] = {
        name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(ranks)] for name in cases | more
    }
    return found | {"folder": folder}


NAMES = (
    *AGGREGATIONS,
    "full",
    "topk",
    "corrected",
    "untied",
    "lora",
    "checkpointing",
    "offloaded",
    "wide",
    "narrow",
    "guarded",
)


@pytest.mark.parametrize("ranks", SPLIT)
@pytest.mark.parametrize("name", NAMES)
def test_ranks_do_what_one_does(
    name: str, ranks: int, alone: Mapping[str, Any], shared: Mapping[int, Any], cases: dict[str, Any]
) -> None:
    assert set(NAMES) == set(cases)
    one, found = alone[name], shared[ranks][name]
    near = 0.05 if name == "narrow" else 1e-5
    assert {seen["loss"][0] for seen in found} == {found[0]["loss"][0]}, (
        "all ranks know the loss of the batch"
    )
    for seen in found:
        assert seen["loss"] == pytest.approx(one["loss"], rel=near)
        assert seen["norm"] == pytest.approx(one["norm"], rel=near)
    for kind in ("moments", "weights", "merged"):
        assert one[kind].keys() == found[0][kind].keys()
        largest = max(float(w.abs().max()) for w in one[kind].values())
        for parameter, weight in one[kind].items():
            assert all(torch.equal(found[0][kind][parameter], seen[kind][parameter]) for seen in found)
            gap = float((found[0][kind][parameter] - weight).abs().max())
            assert gap <= (0.05 if name == "narrow" else 2e-5) * largest, parameter


@pytest.mark.parametrize("ranks", SPLIT)
@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_computed_once_by_some_rank(
    name: str, ranks: int, alone: Mapping[str, Any], shared: Mapping[int, Any]
) -> None:
    one, found = alone[name], shared[ranks][name]
    relative, tolerance = (2**-5, 0.1) if name == "narrow" else (1e-5, 1e-4)
    for update in range(2):
        for row, expected in enumerate(one["reports"][update]):
            (seen,) = [f["reports"][update][row] for f in found if f["reports"][update][row] is not None]
            torch.testing.assert_close(seen, expected, rtol=relative, atol=tolerance)
    for kind in ("logprobs", "kl"):
        assert sorted(row for f in found for row in f[kind]) == sorted(one[kind])
        for f in found:
            for row, value in f[kind].items():
                expected = torch.as_tensor(one[kind][row])
                torch.testing.assert_close(torch.as_tensor(value), expected, rtol=relative, atol=tolerance)
    assert bool(one["kl"]) == (name in ("full", "topk"))


@pytest.mark.parametrize("ranks", SPLIT)
def test_ranks_refuse_a_step_alike_and_as_if_it_had_never_been(
    ranks: int, alone: Mapping[str, Any], shared: Mapping[int, Any]
) -> None:
    """Loss, gradient norm and KL are those of the whole batch; what is not finite is named by the rank that has it."""
    found, plain = shared[ranks]["guarded"], shared[ranks]["token-mean"]
    *said, (rows, blame) = alone["guarded"]["refused"]
    for number, words in enumerate(said):
        (mine,) = {seen["refused"][number] for seen in found}
        name, _, figures = words.partition(" is ")
        assert mine.startswith(f"{name} is ")
        value = float(figures.split()[0].rstrip(","))
        assert float(mine.partition(" is ")[2].split()[0].rstrip(",")) == pytest.approx(value, rel=1e-3)
    assert rows == [4] and "rows.jsonl:5" in blame and "response token 3 of 14" in blame
    assert sorted(seen["refused"][3][0] for seen in found) == [[]] * (ranks - 1) + [[4]]
    (telling,) = [seen["refused"][3][1] for seen in found if seen["refused"][3][0]]
    assert telling.partition(": ")[2] == blame.partition(": ")[2]
    for seen, other in zip(found, plain, strict=True):
        assert seen["loss"] == other["loss"] and seen["norm"] == other["norm"]
        for kind in ("weights", "moments"):
            assert all(torch.equal(value, other[kind][name]) for name, value in seen[kind].items())


@pytest.mark.parametrize("ranks", SPLIT)
def test_ranks_go_on_from_the_checkpoint_of_one(
    ranks: int, alone: Mapping[str, Any], shared: Mapping[int, Any], cases: dict[str, Any]
) -> None:
    case = cases["token-mean"] | {"start": str(alone["folder"] / "token-mean" / "checkpoint")}
    one, found = play(case, ALONE), shared[ranks]["resumed"][0]
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, weight in one["weights"].items():
        assert not torch.equal(weight, alone["token-mean"]["weights"][name])
        torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ranks", SPLIT)
@pytest.mark.parametrize("name", ["token-mean", "lora"])
def test_one_goes_on_from_the_checkpoint_of_ranks(
    name: str, ranks: int, shared: Mapping[int, Any], cases: dict[str, Any]
) -> None:
    """Bit for bit what the ranks had; the optimizer's moments too, as the next step shows."""
    folder = shared[ranks]["folder"] / name / "checkpoint"
    assert len(list(folder.glob("*.safetensors"))) == ranks, "each rank writes its own part"
    recipe = parse_recipe(cases[name]["recipe"])
    assert isinstance(recipe, OpdRecipe)
    bench = Bench.of(recipe)
    bench.learner.load(folder, 2)
    found = shared[ranks][name][0]
    for parameter, weight in bench.learner.parameters.items():
        assert torch.equal(weight, found["weights"][parameter])
        state = bench.learner.optimizer.state[weight]
        assert torch.equal(state["exp_avg"], found["moments"][parameter])
        assert float(state["step"]) == 2


@pytest.mark.parametrize("ranks", SPLIT)
@pytest.mark.parametrize("name", ["token-mean", "untied", "lora"])
def test_ranks_export_a_plain_folder(
    name: str, ranks: int, alone: Mapping[str, Any], shared: Mapping[int, Any]
) -> None:
    one = load_file(alone["folder"] / name / "student" / "model.safetensors")
    folder = shared[ranks]["folder"] / name / "student"
    found = load_file(folder / "model.safetensors")
    assert one.keys() == found.keys()
    for parameter, weight in shared[ranks][name][0]["merged"].items():
        assert torch.equal(found[parameter], weight)
        torch.testing.assert_close(one[parameter], weight, rtol=0, atol=1e-5)
    names = {p.name for p in (alone["folder"] / name / "student").iterdir()}
    assert {p.name for p in folder.iterdir()} == names
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_rows_are_dealt_evenly(ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    responses = [[0] * int(n) for n in torch.randint(1, 200, (50,), generator=generator)]
    prompts = [[i] * (5 + i % 7) for i in range(50)]
    rounds = deal(prompts, responses, 600, ranks)
    assert sorted(row for groups in rounds for group in groups for row in group) == list(range(50))
    assert all(len(groups) == ranks for groups in rounds)
    tokens = [[sum(len(prompts[r]) + len(responses[r]) for r in g) for g in groups] for groups in rounds]
    assert max(map(max, tokens)) <= 600
    for groups in tokens if ranks > 1 else []:
        assert max(groups) - min(groups) <= 0.2 * max(groups)
    if ranks == 1:
        assert [groups[0] for groups in rounds] == micro_batches(prompts, responses, 600)


def test_ranks_without_rows_get_empty_groups() -> None:
    assert deal([[1]], [[2, 3]], 10, 3) == [[[0], [], []]]
    long = deal([[1], [2], [3]], [[0] * 30, [0] * 4, [0] * 4], 10, 2)
    assert sorted(row for groups in long for group in groups for row in group) == [0, 1, 2]


def test_hidden_states_of_another_process_come_to_where_the_learner_computes(cases: dict[str, Any]) -> None:
    recipe = parse_recipe(cases["full"]["recipe"])
    assert isinstance(recipe, OpdRecipe)
    bench = Bench.of(recipe)
    bench.student.device = torch.device("meta")
    head_VD = torch.zeros(5, 4, device="meta")
    bench.learner.heads = lambda route: (head_VD, head_VD)
    rows = [HiddenHere(torch.zeros(n, 4), torch.zeros(n, 4)) for n in (2, 3)]
    target = bench.learner._target([Scores("a", 1.25, hidden=hidden) for hidden in rows])
    assert target is not None and target.reference is not None
    for projection in (target.teacher, target.reference):
        assert projection.hidden_TD.shape == (5, 4) and projection.hidden_TD.device.type == "meta"
