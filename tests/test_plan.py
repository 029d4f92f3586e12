"""`gopd plan` against real modules, PyTorch's counters, real caches and measured updates; and what it must refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import random_model
from gopd import attention, cli
from gopd.attention import DecodeLayout, KeyValueCache, PackedLayout
from gopd.cost import Limits, ModelCost
from gopd.errors import BadInput
from gopd.packing import pack
from gopd.plan.devices import GPUS, gpu
from gopd.plan.fit import fit
from gopd.plan.layout import Layout, check_layout, layout_of
from gopd.plan.lengths import balanced, dealt, response_lengths
from gopd.plan.links import gather_seconds, sum_seconds
from gopd.plan.memory import Numerics, cache_bytes, saved_bytes, update_memory
from gopd.plan.propose import propose, section_yaml
from gopd.plan.published import CONFIGS
from gopd.plan.simulate import SETTINGS, simulate
from gopd.plan.sizes import ModelSizes, sizes_of
from gopd.plan.timing import decoding, step_timing
from gopd.plan.workload import Assumptions, Workload, workload_of
from gopd.recipe_file import load_recipe
from tiny import load

ROOT = Path(__file__).resolve().parents[1]
PAPER = sorted((ROOT / "recipes/paper").glob("*.yaml"))
MEASURED = ROOT / "experiments/plan/measured.json"
H100 = gpu("h100-80gb")
SHAPE: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def sizes(kind: str, element: int = 4, **changed: Any) -> ModelSizes:
    return sizes_of(AutoConfig.for_model(kind, **SHAPE | changed), kind, "test", element)


def real(kind: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    config = AutoConfig.for_model(kind, **SHAPE | changed)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME).eval()


def paper_work(name: str = "multi-teacher", factor: int = 1, **assumed: Any) -> Workload:
    recipe = load_recipe(ROOT / f"recipes/paper/{name}.yaml")
    return workload_of(recipe, Assumptions(**assumed), {}, 2, factor=factor)


# --- sizes and operations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_parameters_are_those_of_the_real_module(kind: str, tied: bool) -> None:
    model, found = real(kind, tie_word_embeddings=tied), sizes(kind, tie_word_embeddings=tied)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.block == sum(p.numel() for p in model.model.layers[0].parameters())
    last = sum(p.numel() for p in model.model.norm.parameters())
    assert found.root == (1 if tied else 2) * model.lm_head.weight.numel() + last
    assert found.head_width == 32 or kind == "qwen2"


def test_a_models_cost_is_the_same_without_its_weights(student_folder: Path, llama_folder: Path) -> None:
    for folder in (student_folder, llama_folder):
        config = AutoConfig.from_pretrained(folder)
        assert sizes_of(config, "x", "test", 4).cost == ModelCost.of(load(folder))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_operations_are_what_the_counter_says(kind: str) -> None:
    """Products of matrices one by one; attention by the pairs of tokens that causal attention needs."""
    model, cost = real(kind), sizes(kind).cost
    prompts, responses = [30, 11, 7], [21, 34, 2]
    packed = pack([[1] * p for p in prompts], [[2] * r for r in responses], torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layout = PackedLayout(packed.lengths, packed.after)
        ids, positions = packed.input_ids_T[None], packed.position_ids_T[None]
        hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
        hidden.last_hidden_state[0, packed.predicts_T] @ model.lm_head.weight.T
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    pairs = sum(n * (n + 1) / 2 for n in (p + r - 1 for p, r in zip(prompts, responses, strict=True)))
    assert cost.forward(prompts, responses).flops == counts["aten.mm"] + 4 * cost.attention * pairs


def test_operations_of_a_published_model_are_what_the_counter_says() -> None:
    """Without its weights: the device `meta` runs every product's bookkeeping. Forward and backward."""
    name = "Qwen/Qwen3-4B"
    config = AutoConfig.for_model(**CONFIGS[name])
    cost, lengths = sizes_of(config, name, "test", 2).cost, [70, 50]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
        ids = torch.zeros(1, sum(lengths), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(
            input_ids=ids, position_ids=ids, use_cache=False, layout=PackedLayout(lengths)
        ).last_hidden_state
        (hidden[0] @ model.lm_head.weight.T).sum().backward()
    linear = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}["aten.mm"]
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    assert cost.update([1, 1], lengths).flops == linear + 3 * 4 * cost.attention * pairs


def test_a_mixture_of_experts_counts_what_a_token_uses() -> None:
    mixture = {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}
    model, found = real("qwen3_moe", **mixture), sizes("qwen3_moe", **mixture)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    names = dict(model.model.named_parameters())
    used = sum(p.numel() for n, p in names.items() if n.endswith(("_proj.weight", "gate.weight")))
    used += sum(p.numel() // 4 for n, p in names.items() if "experts" in n)  # 2 of 8
    assert found.cost.body == used


def test_published_sizes() -> None:
    """The counts that Qwen's model cards state, in billions; embeddings count for the active ones there."""
    found = {n: sizes_of(AutoConfig.for_model(**c), n, "test", 2) for n, c in CONFIGS.items()}
    assert round(found["Qwen/Qwen3-1.7B"].parameters / 1e9, 1) == 1.7
    assert round(found["Qwen/Qwen3-4B"].parameters / 1e9, 1) == 4.0
    large = found["Qwen/Qwen3-30B-A3B-Instruct-2507"]
    assert round(large.parameters / 1e9, 1) == 30.5
    assert (large.cost.body + 2 * large.cost.head) / 1e9 == pytest.approx(3.3, abs=0.06)


# --- memory ---------------------------------------------------------------------------------------------------------


def kept(model: Any, lengths: list[int], narrow: bool = False, checkpointing: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        weight = (
            narrow and tensor.dtype == torch.bfloat16 and tensor.dim() == 2 and len(tensor) != sum(lengths)
        )
        if place not in own and not weight:
            seen[place] = tensor
        return tensor

    ids = torch.zeros(1, sum(lengths), dtype=torch.long)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
    ):
        out = model.model(
            input_ids=ids, position_ids=positions, use_cache=False, layout=PackedLayout(lengths)
        )
    assert out.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_kept_activations_are_exactly_what_autograd_keeps(kind: str, numbers: str) -> None:
    lengths = [40, 24]
    dtype = torch.bfloat16 if numbers == "bfloat16" else torch.float32
    numerics = Numerics(4 if numbers == "float32" else 2, sharded=numbers == "bfloat16")
    found = kept(real(kind, dtype), lengths, narrow=numbers == "autocast")
    assert found == sum(lengths) * saved_bytes(sizes(kind), numerics, checkpointing=False)


def test_checkpointing_keeps_each_blocks_input() -> None:
    """Cosines and sines are held by the function that recomputes, not by autograd."""
    lengths, model = [40, 24], sizes("qwen3")
    found = kept(real("qwen3"), lengths, checkpointing=True)
    found += sum(lengths) * 2 * 4 * model.head_width
    assert found == sum(lengths) * saved_bytes(model, Numerics(4), checkpointing=True)


def test_cache_bytes_are_those_of_a_real_cache() -> None:
    model, cache = random_model(0), KeyValueCache(3, 17)
    layout = DecodeLayout.at(cache, torch.tensor([4, 2, 5]))
    model.set_attn_implementation(attention.NAME)
    ids, positions = torch.ones(3, 1, dtype=torch.long), layout.positions_B[:, None]
    with torch.no_grad():
        model.model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
    held = sum(t.nbytes for t in (*cache.keys, *cache.values))
    assert held == 3 * cache_bytes(sizes_of(model.config, "x", "test", 4), 4, 17)


def measured_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(MEASURED.read_text())["memory"]
    return rows


@pytest.mark.parametrize("row", measured_rows(), ids=lambda r: f"{r['case']}-{r['budget']}")
def test_measured_peaks_are_within_15_percent(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MEASURED.parent))
    import peaks

    case = next(
        c
        for c in peaks.CASES
        if (c.name, c.budget, c.checkpointing) == (row["case"], row["budget"], row["checkpointing"])
    )
    predicted = sum(peaks.predicted(case).values())
    assert predicted == pytest.approx(row["predicted"]), "the formulas changed: measure anew"
    assert abs(predicted / row["tensors"] - 1) < 0.15


def test_measured_peaks_of_scoring_are_within_15_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MEASURED.parent))
    import peaks

    for row in json.loads(MEASURED.read_text())["scoring"]:
        predicted = peaks.predicted_scoring(peaks.CASES[row["number"]])
        assert predicted == pytest.approx(row["predicted"]), "the formulas changed: measure anew"
        assert abs(predicted / row["tensors"] - 1) < 0.15


def test_measured_peaks_of_sharded_ranks_are_within_15_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MEASURED.parent))
    import sharded

    rows = json.loads((MEASURED.parent / "sharded.json").read_text())
    for number, row in enumerate(rows):
        predicted = sharded.predicted(number)
        assert predicted == pytest.approx(row["predicted"]), "the formulas changed: measure anew"
        assert all(abs(predicted / peak - 1) < 0.15 for peak in row["peaks"])


def test_shards_split_the_states_and_nothing_else() -> None:
    model = paper_work().student
    settings: dict[str, Any] = {"tokens": 4096, "predicted": 4096, "checkpointing": True}
    one, eight = (update_memory(model, Numerics(2, n, True), **settings) for n in (1, 8))
    for part in ("weights", "gradients", "optimizer"):
        assert eight[part] == one[part] / 8
    assert {k: v for k, v in one.items() if k not in ("weights", "gradients", "optimizer")} == {
        k: v for k, v in eight.items() if k not in ("weights", "gradients", "optimizer")
    }
    away = update_memory(model, Numerics(2, 8, True, offload=True), **settings)
    assert away["optimizer"] == 0


def test_roles_that_share_devices_leave_each_other_less_room() -> None:
    work = paper_work()
    layout = Layout(
        ranks=8, replicas=8, scorers=4, colocate=True, engine="vllm", memory_share=0.5, sleep=True
    )
    roles = {role.role: role for role in fit(work, layout, H100).roles}
    frozen, states = 2 * 2 * work.student.parameters, 12 * work.student.parameters / 8
    assert roles["sampler"].parts["others"] == frozen + states
    assert roles["learner"].parts["frozen weights"] == roles["scorer"].parts["frozen weights"] == frozen
    away = {role.role: role for role in fit(work, replace(layout, offload=True), H100).roles}
    assert away["sampler"].parts["others"] == frozen
    awake = {role.role: role for role in fit(work, replace(layout, sleep=False), H100).roles}
    assert awake["learner"].room == roles["learner"].room - 0.5 * H100.memory
    fuller = {role.role: role for role in fit(work, replace(layout, scorers=8), H100).roles}
    assert fuller["scorer"].parts["frozen weights"] == 2 * frozen, "two teachers' scorers on every device"
    itself = replace(work, seats=[replace(work.seats[0], reference=work.seats[0].teacher)])
    (_, _, scorer) = fit(itself, layout, H100).roles
    assert scorer.parts["frozen weights"] == frozen / 2, "one model, loaded once"
    apart = {role.role: role for role in fit(work, replace(layout, colocate=False), H100).roles}
    assert "others" not in apart["sampler"].parts and "frozen weights" not in apart["learner"].parts


# --- lengths and links ----------------------------------------------------------------------------------------------


def test_lengths_have_the_mean_that_was_asked_for() -> None:
    for mean, limit, spread in ((4096, 16384, 1.0), (700, 16384, 1.5), (50, 50, 1.0), (300, 400, 0.0)):
        lengths = response_lengths(1024, mean, limit, spread)
        assert abs(sum(lengths) / 1024 - mean) < 1 and min(lengths) >= 1 and max(lengths) <= limit
    assert sorted(response_lengths(64, 9, 99, 1.0)) == sorted(response_lengths(64, 9, 99, 1.0, seed=1))


def test_rows_are_shared_out_whole() -> None:
    lengths = [9, 1, 4, 4, 7, 2, 2, 11]
    for shares in (balanced(lengths, 3), dealt(range(8), 3)):
        assert sorted(row for share in shares for row in share) == list(range(8))
    loads = [sum(lengths[r] for r in share) for share in balanced(lengths, 3)]
    assert max(loads) - min(loads) <= 2


def test_collectives_move_no_less_than_they_must() -> None:
    assert gather_seconds(H100, 1, 1e9) == sum_seconds(H100, 1, 1e9) == 0
    assert gather_seconds(H100, 8, 1e9) >= 7 / 8 * 1e9 / H100.local_link
    assert gather_seconds(H100, 16, 1e9) >= 15 / 16 * 1e9 / H100.remote_link
    times = [gather_seconds(H100, n, 1e9, calls=36) for n in (2, 8, 16, 64, 512, 4096)]
    assert times == sorted(times)


# --- time -----------------------------------------------------------------------------------------------------------

FAST = Limits(1e12, 1e11)


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("samples", [1, 2])
def test_decoding_does_the_work_that_sampling_needs(samples: int, slots: int) -> None:
    cost = sizes("qwen3").cost
    responses = (5, 1, 19, 7, 7, 2)
    run = decoding(cost, 13, responses, samples, slots, FAST)
    work = cost.sampling([13] * 6, responses, samples=samples, slots=slots)
    assert run.work.flops == pytest.approx(work.flops, rel=1e-12)
    assert run.seconds >= run.work.flops / FAST.flops_per_second
    assert run.seconds >= run.work.bytes / FAST.bytes_per_second
    if slots == 1:  # one row after the other: every decoding step reads all weights and its row's cache
        steps = [13 + i for r in responses for i in range(1, r)]
        assert run.work.bytes == 4 * sum(cost.body + cost.head + cost.cache * context for context in steps)


@pytest.mark.parametrize("name", [path.stem for path in PAPER])
def test_no_phase_is_quicker_than_its_operations_allow(name: str) -> None:
    work = paper_work(name)
    layout = Layout(ranks=8, replicas=8, scorers=8, colocate=True, engine="vllm", slots=64)
    timing = step_timing(work, layout, H100, 64)
    for phase in timing.phases:
        assert phase.seconds >= phase.flops / (8 * H100.limits.flops_per_second)
    assert timing.seconds == pytest.approx(sum(phase.seconds for phase in timing.phases))


def test_overlap_is_never_quicker_than_the_longest_phase() -> None:
    work = paper_work()
    layout = Layout(ranks=2, replicas=4, scorers=1, engine="vllm")
    times = [step_timing(replace(work, staleness=s), layout, H100, 256) for s in (0, 1, 2, 9)]
    seconds = [timing.seconds for timing in times]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == max(phase.seconds for phase in times[-1].phases)


def test_more_devices_never_slow_a_fixed_batch_but_use_falls() -> None:
    points = simulate(lambda factor: paper_work(factor=factor), SETTINGS[0], H100, (8, 32, 128, 512))
    seconds, speeds = [p.timing.seconds for p in points], [p.per_device for p in points]
    assert seconds == sorted(seconds, reverse=True) and speeds == sorted(speeds, reverse=True)
    links = [p.timing.phases[2].links for p in points]
    assert all(link > 0 for link in links)
    longest = max(paper_work().responses)
    weights = 2 * (paper_work().student.cost.body + paper_work().student.cost.head)
    assert seconds[-1] > (longest - 1) * weights / H100.limits.bytes_per_second, (
        "the longest row's steps remain"
    )


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_recipe_of_the_paper_fits_8_h100(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(path), "--gpus", "8", "--gpu", "h100-80gb", "--json"]
    assert cli.main(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kind"] == "prediction" and plan["fits"] and plan["proposed"]["seconds"] > 1
    assert all(role["total"] <= role["room"] <= 80e9 for role in plan["proposed"]["memory"])


def test_a_proposal_pasted_into_the_recipe_is_judged_the_same(tmp_path: Path) -> None:
    text = (ROOT / "recipes/paper/multi-teacher.yaml").read_text()
    work, like = paper_work(), layout_of(load_recipe(PAPER[0]), alone=False)
    choice = propose(work, like, H100, 8)
    assert choice is not None
    path = tmp_path / "mine.yaml"
    path.write_text(text + section_yaml(choice, work.budget))
    recipe = load_recipe(path)
    layout = layout_of(recipe, alone=False)
    assert layout == choice.layout
    assert fit(workload_of(recipe, Assumptions(), {}, 2), layout, H100) == choice.fit
    assert cli.main(["plan", str(path), "--gpus", "8", "--gpu", "H100-80GB"]) == 0


def test_tables_say_that_they_are_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/paper/strong-to-weak-4b.yaml")
    assert cli.main(["plan", recipe, "--gpus", "8", "--gpu", "h100-80gb"]) == 0
    out = capsys.readouterr().out
    for text in (
        "A prediction, not a measurement",
        "used by a token",
        "to paste",
        "tokens_per_micro_batch: 18432",
    ):
        assert text in out


def test_what_does_not_fit_is_said_with_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/paper/math-single.yaml")
    overrides = ["cluster.learner_ranks=1", "student.gradient_checkpointing=false"]
    assert cli.main(["plan", recipe, *overrides, "--gpus", "8", "--gpu", "h100-80gb"]) == 1
    out = capsys.readouterr().out
    assert "learner does not fit" in out and "set student.gradient_checkpointing" in out
    assert "sampler does not fit" in out and "sampler.engine: vllm" in out
    recipe = str(ROOT / "recipes/paper/strong-to-weak-4b.yaml")
    assert cli.main(["plan", recipe, "--gpus", "1", "--gpu", "l40s"]) == 1
    assert "No cluster section fits 1 × l40s" in capsys.readouterr().out


def test_a_plan_for_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/quickstart.yaml")
    assert cli.main(["plan", recipe, "--device", "cpu", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["proposed"] is None and plan["own"]["layout"]["alone"]
    assert {phase["name"] for phase in plan["own"]["phases"]} == {"sampling", "scoring", "update"}


QUICK = str(ROOT / "recipes/quickstart.yaml")
ON = ["--gpus", "8", "--gpu", "h100-80gb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICK], "--gpus N --gpu NAME"),
        ([QUICK, "--gpus", "8", "--gpu", "h100-80"], "did you mean h100-80gb"),
        ([QUICK, "--gpus", "0", "--gpu", "h200"], "at least 1"),
        ([QUICK, "--device", "cpu", *ON], "either --device cpu"),
        ([QUICK, *ON, "student.model=no/such/model"], "--like student=NAME"),
        ([QUICK, *ON, "--like", "maths=builtin:base"], "no such role; roles are code"),
        ([QUICK, *ON, "--like", "math"], "expected ROLE=NAME"),
        ([QUICK, *ON, "--like", "student=Qwen/Qwen3-30B-A3B-Instruct-2507"], "mixture of experts"),
        ([QUICK, *ON, "student.lora={rank: 4}"], "student.lora"),
        ([QUICK, *ON, "cluster.learner_ranks=7"], "takes 10 devices"),
        (
            [QUICK, *ON, "cluster.learner_ranks=1", "sampler.engine=vllm", "sampler.vllm.tensor_parallel=3"],
            "heads",
        ),
        ([QUICK, *ON, "--mean-response-tokens", "17000"], "data.max_response_tokens"),
        ([QUICK, *ON, "--update-share", "1.5"], "--update-share 1.5"),
        ([QUICK, *ON, "--spread", "-1"], "not negative"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_kinds_of_models_are_refused() -> None:
    with pytest.raises(BadInput, match="does not know models of type 'gpt2'"):
        sizes_of(AutoConfig.for_model("gpt2"), "x", "test", 4)


def test_an_engine_stays_in_its_node() -> None:
    work = paper_work()
    with pytest.raises(BadInput, match="a node of h100-80gb has 8 devices"):
        check_layout(Layout(tensor_parallel=16, engine="vllm"), work, H100, 64)


def test_devices_are_coherent() -> None:
    for device in GPUS.values():
        assert device.remote_link < device.local_link < device.bandwidth and math.isfinite(device.flops)
        assert device.usable < device.memory
