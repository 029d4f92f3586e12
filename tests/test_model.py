from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import VOCABULARY, MakeModel
from gopd.errors import BadInput
from gopd.logprobs import linear_logprobs
from gopd.model import LanguageModel, load_model
from gopd.packing import micro_batches, pack
from gopd.sections import LoraSection, ModelSpec

CPU = torch.device("cpu")
NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
LENGTHS = [(3, 7), (11, 1), (1, 20), (5, 5), (30, 2)]
"""Prompt and response lengths of five rows."""


def load(folder: Path, role: str = "student") -> LanguageModel:
    return load_model(ModelSpec(model=str(folder)), role, device=CPU, dtype=torch.float32)


def plain(folder: Path, attention: str = "sdpa") -> PreTrainedModel:
    """The same weights through Transformers alone."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


def random_rows(lengths: list[tuple[int, int]], seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    return [draw(p) for p, _ in lengths], [draw(r) for _, r in lengths]


def packed_logprobs(
    model: LanguageModel, prompts: list[list[int]], responses: list[list[int]]
) -> list[Tensor]:
    packed = pack(prompts, responses, CPU)
    with torch.no_grad():
        return packed.split(linear_logprobs(model.project(packed), packed.targets_T, 1.0))


def row_logprobs(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probs of a response by a plain forward of that row alone."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    ours = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return ours[torch.arange(len(response)), torch.tensor(response)]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request: pytest.FixtureRequest, student_folder: Path, llama_folder: Path) -> Path:
    return {"qwen3": student_folder, "llama": llama_folder}[request.param]


# --- packed forward against Transformers ---------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logprobs_are_those_of_each_row_alone(folder: Path, attention: str) -> None:
    prompts, responses = random_rows(LENGTHS)
    theirs = plain(folder, attention)
    for prompt, response, found in zip(
        prompts, responses, packed_logprobs(load(folder), prompts, responses), strict=True
    ):
        with torch.no_grad():
            expected = row_logprobs(theirs, prompt, response)
        torch.testing.assert_close(found, expected, **NEAR)


def test_the_tiny_models_are_far_from_uniform(folder: Path) -> None:
    """Otherwise the comparisons here would pass for any attention."""
    assert float(torch.cat(packed_logprobs(load(folder), *random_rows(LENGTHS))).std()) > 1


def test_logprobs_do_not_depend_on_batch_mates_or_order(folder: Path) -> None:
    model = load(folder)
    prompts, responses = random_rows(LENGTHS)
    together = packed_logprobs(model, prompts, responses)
    order = [4, 0, 3, 1, 2]
    shuffled = packed_logprobs(model, [prompts[i] for i in order], [responses[i] for i in order])
    other_mates = [[7] * len(p) for p in prompts[:-1]]
    last = packed_logprobs(model, [*other_mates, prompts[-1]], responses)[-1]
    torch.testing.assert_close(last, together[-1], rtol=0, atol=1e-5)
    for place, row in enumerate(order):
        alone = packed_logprobs(model, [prompts[row]], [responses[row]])[0]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(shuffled[place], together[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_gradients_are_the_sum_over_rows_alone(folder: Path, checkpointing: bool) -> None:
    check_gradients(folder, *random_rows(LENGTHS), checkpointing)


def check_gradients(
    folder: Path, prompts: list[list[int]], responses: list[list[int]], checkpointing: bool
) -> None:
    model, theirs = load(folder), plain(folder)
    if checkpointing:
        model.module.train()
        model.module.gradient_checkpointing_enable()
        model.module.enable_input_require_grads()
    packed = pack(prompts, responses, CPU)
    projection = model.project(packed)
    logits_TV = projection.hidden_TD @ projection.head_VD.T
    ours = logits_TV.log_softmax(-1).gather(-1, packed.targets_T[:, None]).mean()
    ours.backward()
    total = sum(row_logprobs(theirs, p, r).sum() for p, r in zip(prompts, responses, strict=True))
    assert isinstance(total, Tensor)
    (total / len(packed.targets_T)).backward()
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in model.module.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(
            weight.grad, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- prompts that several rows share --------------------------------------------------------------------------------


SHARED = [(6, 4), (6, 1), (6, 11), (3, 5), (9, 2), (9, 9), (2, 1), (2, 1)]
"""(prompt, response) tokens; neighbours of one prompt length share the prompt."""


def shared_rows() -> tuple[list[list[int]], list[list[int]]]:
    prompts, responses = random_rows(SHARED)
    firsts = {len(p): p for p in reversed(prompts)}
    return [firsts[len(p)] for p in prompts], responses


def test_rows_that_share_a_prompt_have_the_logprobs_of_each_row_alone(folder: Path) -> None:
    prompts, responses = shared_rows()
    theirs = plain(folder)
    found = packed_logprobs(load(folder), prompts, responses)
    for prompt, response, mine in zip(prompts, responses, found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(mine, row_logprobs(theirs, prompt, response), **NEAR)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_their_gradients_are_the_sum_over_rows_alone(folder: Path, checkpointing: bool) -> None:
    check_gradients(folder, *shared_rows(), checkpointing)


def test_their_gradients_are_the_same_to_the_bit_on_many_threads(folder: Path) -> None:
    prompts, responses = [[5, 6, 7]] * 3000, [[8]] * 3000  # enough for the work to be split
    weight_TD = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
    found = []
    torch.set_num_threads(4)
    try:
        for _ in range(5):
            model = load(folder)
            projection = model.project(pack(prompts, responses, CPU))
            (projection.hidden_TD * weight_TD).sum().backward()
            found.append([w.grad for w in model.module.parameters() if w.grad is not None])
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_shared_prompt_is_packed_once() -> None:
    packed = pack([[10, 11], [10, 11], [10, 11], [10]], [[12, 13], [14], [15, 16, 17], [18]], CPU)
    assert packed.input_ids_T.tolist() == [10, 11, 12, 15, 16, 10]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 2, 3, 0]
    assert packed.lengths == [2, 1, 2, 1] and packed.after == [None, 0, 0, None]
    assert packed.targets_T.tolist() == [12, 13, 14, 15, 16, 17, 18]
    assert packed.input_ids_T[packed.predicts_T].tolist() == [11, 12, 11, 11, 15, 16, 10]
    assert packed.row_T.tolist() == [0, 0, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(("budget", "groups"), [(39, 1), (26, 2), (13, 3), (12, 6), (1, 9)])
def test_micro_batches_keep_rows_of_one_prompt_together(budget: int, groups: int) -> None:
    prompts, responses = [[i // 3] * 10 for i in range(9)], [[0]] * 9
    found = micro_batches(prompts, responses, budget)
    assert len(found) == groups
    assert sorted(row for group in found for row in group) == list(range(9))
    for group in found:
        tokens = 10 * len({row // 3 for row in group}) + len(group)
        assert tokens <= budget or len(group) == 1


# --- packing --------------------------------------------------------------------------------------------------------


def test_pack_points_at_the_tokens_before_the_response() -> None:
    packed = pack([[10, 11], [20]], [[12, 13, 14], [21]], CPU)
    assert packed.input_ids_T.tolist() == [10, 11, 12, 13, 20]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 3, 0]
    assert packed.lengths == [4, 1] and packed.after == [None, None]
    assert packed.targets_T.tolist() == [12, 13, 14, 21]
    assert packed.input_ids_T[packed.predicts_T].tolist() == [11, 12, 13, 20]
    assert packed.row_T.tolist() == [0, 0, 0, 1]
    assert [rows.tolist() for rows in packed.split(torch.arange(4))] == [[0, 1, 2], [3]]


def batched(lengths: list[int], budget: int) -> list[list[int]]:
    """Micro-batches of rows with prompts of one token, all different."""
    return micro_batches([[i] for i in range(len(lengths))], [[0] * (n - 1) for n in lengths], budget)


@pytest.mark.parametrize("budget", [1, 50, 128, 10**6])
def test_micro_batches_cover_every_row_once_within_the_budget(budget: int) -> None:
    lengths = torch.randint(1, 130, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = batched(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(200))
    for group in groups:
        assert len(group) == 1 or sum(lengths[row] for row in group) <= budget
    assert groups == batched(list(lengths), budget)
    assert len(batched(lengths, sum(lengths))) == 1


def test_micro_batches_are_nearly_full() -> None:
    lengths = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    assert len(batched(lengths, 128)) <= sum(lengths) / 128 * 1.05 + 1


def test_no_rows_no_micro_batches() -> None:
    assert micro_batches([], [], 100) == []


# --- LoRA -----------------------------------------------------------------------------------------------------------


def test_adapters_off_is_the_base(folder: Path) -> None:
    base, model = load(folder), load(folder)
    model.add_lora(LoraSection(rank=4, alpha=8.0), seed=3)
    for name, weight in model.module.named_parameters():
        assert weight.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    prompts, responses = random_rows(LENGTHS)
    expected = packed_logprobs(base, prompts, responses)
    with model.without_adapters():
        for off, row in zip(packed_logprobs(model, prompts, responses), expected, strict=True):
            assert torch.equal(off, row)
    on = packed_logprobs(model, prompts, responses)
    assert float((on[0] - expected[0]).abs().max()) > 0.1, "adapters must be in effect again"


def test_fresh_adapters_change_nothing_and_depend_on_the_seed(student_folder: Path) -> None:
    prompts, responses = random_rows(LENGTHS)
    expected = packed_logprobs(load(student_folder), prompts, responses)
    adapters = []
    for seed in (3, 3, 4):
        model = load(student_folder)
        model.add_lora(LoraSection(rank=4), seed=seed)
        assert torch.equal(packed_logprobs(model, prompts, responses)[0], expected[0])
        adapters.append(torch.cat([w.flatten() for n, w in model.module.named_parameters() if "lora_A" in n]))
    assert torch.equal(adapters[0], adapters[1])
    assert not torch.equal(adapters[0], adapters[2])


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_the_head_or_embeddings_are_refused(llama_folder: Path, target: str) -> None:
    with pytest.raises(BadInput, match=r"student\.lora.*target_modules"):
        load(llama_folder).add_lora(LoraSection(target_modules=("q_proj", target)), seed=0)


def test_adapters_on_modules_that_do_not_exist_are_refused(student_folder: Path) -> None:
    with pytest.raises(BadInput, match=r"student\.lora.*no_such_proj"):
        load(student_folder).add_lora(LoraSection(target_modules=("no_such_proj",)), seed=0)


# --- loading --------------------------------------------------------------------------------------------------------


def test_frozen_models_get_no_gradient(student_folder: Path) -> None:
    model = load(student_folder).freeze()
    assert not any(weight.requires_grad for weight in model.module.parameters())
    assert not model.project(pack([[1, 2]], [[3]], CPU)).hidden_TD.requires_grad


def test_eos_of_generation_config_and_tokenizer_both_end_a_response(make_model: MakeModel) -> None:
    folder = make_model(0)
    assert load(folder).eos_ids == [2]
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [0, 5]}))
    assert load(folder).eos_ids == [0, 2, 5]


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "~/nowhere-at-all"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(BadInput, match=r"teacher math: no model folder at"):
        load_model(ModelSpec(model=name), "teacher math", device=CPU, dtype=torch.float32)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_pickle_weights_are_never_read(make_model: MakeModel) -> None:
    folder = make_model(0)
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        BadInput, match=r"teacher x: .* pickled \(pytorch_model\.bin\).*never read.*save_pretrained"
    ):
        load(folder, "teacher x")


def test_missing_tensor_is_an_error_not_a_random_one(make_model: MakeModel) -> None:
    folder = make_model(0)
    weights = weights_of(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"student: .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_tensor_of_another_shape_is_an_error(make_model: MakeModel) -> None:
    folder = make_model(0)
    save_file(
        weights_of(folder) | {"model.norm.weight": torch.ones(5)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(BadInput, match=r"student: .*model\.norm\.weight"):
        load(folder)


def test_cut_off_weights_file(make_model: MakeModel) -> None:
    folder = make_model(0)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(BadInput, match="student: cannot load model"):
        load(folder)


def test_damaged_weights(make_model: MakeModel) -> None:
    folder = make_model(0)
    weights = weights_of(folder)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="not finite"):
        load(folder)


def test_config_that_is_not_json(make_model: MakeModel) -> None:
    folder = make_model(0)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="student: cannot load model"):
        load(folder)


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "sliding_attention layers",
        ),
        ("mistral", {"sliding_window": 4}, "sliding_attention layers"),
        ("gemma2", {}, "sliding_attention layers"),
        ("gemma2", {"layer_types": ["full_attention"] * 2, "final_logit_softcapping": 5.0}, "soft-capping"),
        ("granite", {"logits_scaling": 8.0}, "scaling"),
        ("bloom", {}, "attention of its own"),
    ],
)
def test_models_that_would_score_wrongly_are_refused(
    make_model: MakeModel, kind: str, config: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match=rf"^student.*{why}"):
        load(make_model(7, kind, **config))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("qwen2", {}),
        ("mistral", {"sliding_window": None}),
        ("gemma", {}),
        ("smollm3", {}),
        ("granite", {"attention_multiplier": 0.15, "logits_scaling": 1.0}),
    ],
)
def test_other_families_agree_with_transformers(
    make_model: MakeModel, kind: str, config: dict[str, Any]
) -> None:
    folder = make_model(8, kind, **config)
    prompts, responses = random_rows(LENGTHS)
    theirs = plain(folder)
    for prompt, response, found in zip(
        prompts, responses, packed_logprobs(load(folder), prompts, responses), strict=True
    ):
        with torch.no_grad():
            torch.testing.assert_close(found, row_logprobs(theirs, prompt, response), **NEAR)
