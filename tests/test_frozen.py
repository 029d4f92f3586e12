"""Frozen models under a memory budget: what is in memory, what is read when, and that it changes no number."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import MakeModel, tiny_tokenizer
from gopd import frozen, loop
from gopd.errors import BadInput, RunFailed
from gopd.frozen import FrozenModels, same_content, weight_bytes
from gopd.model import LanguageModel
from gopd.recipe import OpdRecipe
from gopd.recipe_file import parse_recipe
from gopd.scorer import Scorer
from gopd.sections import ModelSpec
from gopd.types import Rollout, Scores
from runs import held_out, lines, opd_tree, repeatable, student_weights
from tiny import CPU, Bench, load, make_rollouts, opd_recipe

TEACHERS = 8
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
"""2.3 MB of weights, so that they outweigh what a forward pass keeps."""


@pytest.fixture(scope="module")
def folders(make_model: MakeModel) -> list[Path]:
    """A student and eight teachers, all of one size."""
    return [make_model(seed, **WIDE) for seed in range(TEACHERS + 1)]


@pytest.fixture(scope="module")
def size(folders: list[Path]) -> int:
    """Bytes of one of them."""
    return sum(p.nbytes for p in load(folders[0]).module.parameters())


@dataclass
class Reads:
    """Which weight files were opened, in which thread."""

    opened: list[tuple[Path, str]] = field(default_factory=list)
    events: dict[Path, threading.Event] = field(default_factory=dict)

    def __call__(self, path: Path, *arguments: Any) -> Any:
        self.opened.append((path.parent, threading.current_thread().name))
        self.events.setdefault(path.parent, threading.Event()).set()
        return self.open(path, *arguments)

    open = staticmethod(frozen.safe_open)

    def clear(self) -> None:
        self.opened.clear()
        self.events.clear()

    def in_background(self) -> list[Path]:
        return [folder for folder, thread in self.opened if thread != threading.current_thread().name]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    monkeypatch.setattr(frozen, "safe_open", found)
    return found


def recipe_of(folders: list[Path], memory: float | None, **sections: Any) -> OpdRecipe:
    """Eight teachers with the student's initial weights as reference; `memory` in bytes."""
    teachers = {f"t{i}": {"model": str(folder)} for i, folder in enumerate(folders[1:], 1)}
    limit = None if memory is None else memory / 1e9
    return opd_recipe(folders[0], teachers, scoring={"memory_gb": limit}, **sections)


def rollouts_of(recipe: OpdRecipe, folder: Path) -> list[Rollout]:
    """Two rows a teacher."""
    return make_rollouts(recipe, load(folder), list(recipe.teachers), lengths=(5, 3, 7, 4) * 4)


def scorer_of(recipe: OpdRecipe) -> Scorer:
    return Scorer(recipe, None, device=CPU, dtype=torch.float32)


def same(one: list[Scores | None], other: list[Scores | None]) -> bool:
    def numbers(score: Scores | None) -> list[Tensor]:
        assert score is not None
        assert score.teacher_logprobs_R is not None and score.reference_logprobs_R is not None
        assert score.log_partition_R is not None
        return [score.teacher_logprobs_R, score.reference_logprobs_R, score.log_partition_R]

    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(numbers(x), numbers(y), strict=True))


def living_bytes() -> int:
    """Bytes behind every tensor that Python can reach and that is not set aside."""
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def each_forward(scorer: Scorer, call: Callable[[LanguageModel], None]) -> None:
    for model in scorer.models:

        def hook(module: Any, arguments: Any, options: Any, model: LanguageModel = model) -> None:
            call(model)

        model.body.register_forward_pre_hook(hook, with_kwargs=True)


# --- numbers and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [2, 4, 20])
def test_scores_are_the_same_to_the_bit_and_memory_stays_within_the_budget(
    models: int, folders: list[Path], size: int, reads: Reads
) -> None:
    recipe = recipe_of(folders, models * size)
    rollouts = rollouts_of(recipe, folders[0])
    expected = scorer_of(recipe_of(folders, None)).score(rollouts, temperature=1.0)
    gc.collect()
    gc.freeze()  # what is there now is not counted
    living = list[int]()
    scorer = scorer_of(recipe)
    living.append(living_bytes())
    for batch in range(2):
        if batch:
            each_forward(scorer, lambda model: living.append(living_bytes()))
        reads.clear()
        assert same(scorer.score(rollouts, temperature=1.0), expected)
        assert max(Counter(folder for folder, _ in reads.opened).values(), default=0) <= 1
    gc.unfreeze()
    budget = min(models, TEACHERS + 1) * size
    assert scorer.frozen.peak_bytes == budget
    assert budget - size < max(living) < budget + size // 2, "weights are there, and little else is"
    assert len(living) == 1 + 2 * TEACHERS


def test_peak_memory_does_not_depend_on_the_number_of_teachers(folders: list[Path], size: int) -> None:
    peaks = []
    for count in (3, TEACHERS):
        recipe = recipe_of(folders[: count + 1], 2.5 * size)
        scorer = scorer_of(recipe)
        scorer.score(rollouts_of(recipe, folders[0]), temperature=1.0)
        peaks.append(scorer.frozen.peak_bytes)
    assert peaks == [2 * size, 2 * size]


def test_a_batch_begins_with_what_is_still_in_memory(folders: list[Path], size: int, reads: Reads) -> None:
    recipe = recipe_of(folders, 5 * size)
    scorer, rollouts = scorer_of(recipe), rollouts_of(recipe, folders[0])
    scorer.score(rollouts, temperature=1.0)
    reads.clear()
    scorer.score(rollouts, temperature=1.0)
    assert len(reads.opened) == TEACHERS - 4, "the reference and four teachers were there"
    assert folders[0] not in [folder for folder, _ in reads.opened]


def test_teachers_of_one_reference_follow_each_other(folders: list[Path], size: int, reads: Reads) -> None:
    teachers = {
        f"t{i}": {"model": str(folders[i]), "reference": {"model": str(folders[7 + i % 2])}}
        for i in range(1, 7)
    }
    recipe = opd_recipe(folders[0], teachers, scoring={"memory_gb": 2 * size / 1e9})
    scorer, rollouts = scorer_of(recipe), rollouts_of(recipe, folders[0])
    scorer.score(rollouts, temperature=1.0)
    reads.clear()
    scorer.score(rollouts, temperature=1.0)
    counts = Counter(folder for folder, _ in reads.opened)
    assert max(counts.values()) == 1 and len(counts) == 6, "two of the eight were still there"


# --- fetching ahead -------------------------------------------------------------------------------------------------


def test_the_next_model_is_read_while_the_present_one_computes(
    folders: list[Path], size: int, reads: Reads
) -> None:
    recipe = recipe_of(folders, 3 * size)
    scorer, rollouts = scorer_of(recipe), rollouts_of(recipe, folders[0])
    reads.clear()
    reads.events |= {folder: threading.Event() for folder in folders}
    waited: list[bool] = []
    use = scorer.frozen.use

    def watched(models: Any, later: Any = ()) -> None:
        missing = bool(later) and not there([later[0]])
        use(models, later)
        if missing:  # nothing else runs in this thread until the next one's file is open
            folder = Path(later[0].module.config._name_or_path)
            waited.append(reads.events[folder].wait(20))

    scorer.frozen.use = watched  # type: ignore[method-assign]
    scorer.score(rollouts, temperature=1.0)
    assert waited == [True] * (TEACHERS - 2), "the reference and two teachers were there"
    assert reads.in_background() == [folder for folder, _ in reads.opened]
    assert len(reads.opened) == TEACHERS - 2
    assert scorer.frozen.peak_bytes <= 3 * size


def test_nothing_is_fetched_ahead_where_it_would_not_fit(
    folders: list[Path], size: int, reads: Reads
) -> None:
    recipe = recipe_of(folders, 2.9 * size)
    scorer, rollouts = scorer_of(recipe), rollouts_of(recipe, folders[0])
    reads.clear()
    scorer.score(rollouts, temperature=1.0)
    assert reads.opened and not reads.in_background()


# --- the pool alone -------------------------------------------------------------------------------------------------


Pool = tuple[FrozenModels, list[LanguageModel]]


@pytest.fixture
def pool(folders: list[Path], size: int) -> Pool:
    pool = FrozenModels(device=CPU, dtype=torch.float32, budget=2 * size)
    return pool, [pool.get(ModelSpec(model=str(f)), f"m{i}") for i, f in enumerate(folders[:4])]


def there(models: list[LanguageModel]) -> list[int]:
    """Which models have their weights."""
    return [i for i, m in enumerate(models) if not any(p.isnan().any() for p in m.module.parameters())]


def test_the_model_unused_for_longest_goes(pool: Pool) -> None:
    frozen_models, (a, b, c, d) = pool
    for models in ([a], [b], [a], [c]):
        frozen_models.use(models)
    assert there([a, b, c, d]) == [0, 2]
    frozen_models.use([d])
    assert there([a, b, c, d]) == [2, 3]


def test_what_is_needed_later_stays(pool: Pool) -> None:
    frozen_models, (a, b, c, d) = pool
    frozen_models.use([a])
    frozen_models.use([b])
    frozen_models.use([c], later=[a])
    assert there([a, b, c, d]) == [0, 2], "b was used after a, but a is needed"


def test_a_model_that_is_not_in_memory_gives_no_numbers(pool: Pool) -> None:
    frozen_models, models = pool
    frozen_models.use(models[2:])
    shapes = [(n, p.shape) for n, p in models[3].module.named_parameters()]
    assert [(n, p.shape) for n, p in models[0].module.named_parameters()] == shapes
    ids = torch.tensor([[5, 6, 7]])
    models[0].module.set_attn_implementation("eager")
    assert models[0].module(input_ids=ids).logits.isnan().all()


def test_weights_come_back_to_the_bit(pool: Pool, folders: list[Path]) -> None:
    frozen_models, models = pool
    for number in (0, 3, 1):
        frozen_models.use([models[number]])
        own = dict(load(folders[number]).module.named_parameters())
        for name, parameter in models[number].module.named_parameters():
            assert torch.equal(parameter, own[name]) and not parameter.requires_grad


def test_weights_that_transformers_renames_come_back_through_it(
    make_model: MakeModel, folders: list[Path], size: int, reads: Reads
) -> None:
    """As from a checkpoint of the body alone; such a model is not fetched ahead."""
    folder = make_model(30, **WIDE)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n.removeprefix("model."): w for n, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    pool = FrozenModels(device=CPU, dtype=torch.float32, budget=2 * size)
    first, second = (pool.get(ModelSpec(model=str(f)), "m") for f in (folder, folders[0]))
    before = [p.clone() for p in first.module.parameters()]
    third = pool.get(ModelSpec(model=str(folders[1])), "m")
    assert there([first, second, third]) == [1, 2]
    reads.clear()
    pool.use([third], later=[first])
    assert not reads.opened and there([first, second, third]) == [1, 2]
    pool.use([first])
    assert all(torch.equal(p, b) for p, b in zip(first.module.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in first.module.parameters())


def test_weights_kept_in_host_memory_are_not_read_again(folders: list[Path], size: int, reads: Reads) -> None:
    """As on a GPU; here both are the same memory."""
    pool = FrozenModels(device=CPU, dtype=torch.float32, budget=2 * size, host_copies=True)
    models = [pool.get(ModelSpec(model=str(f)), "m") for f in folders[:4]]
    reads.clear()
    for number in (0, 2, 1, 3):
        pool.use([models[number]])
        own = load(folders[number]).module.parameters()
        assert all(torch.equal(p, o) for p, o in zip(models[number].module.parameters(), own, strict=True))
    assert not reads.opened


def test_weights_that_are_gone_stop_the_run(make_model: MakeModel, folders: list[Path], size: int) -> None:
    folder = make_model(31, **WIDE)
    pool = FrozenModels(device=CPU, dtype=torch.float32, budget=size)
    first, _ = (pool.get(ModelSpec(model=str(f)), "teacher x") for f in (folder, folders[0]))
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunFailed, match=r"teacher x .* cannot be read again"):
        pool.use([first])


def test_sizes_are_known_without_weights(folders: list[Path], llama_folder: Path) -> None:
    for folder in (folders[0], llama_folder):
        expected = sum(p.nbytes for p in load(folder).module.parameters())
        assert weight_bytes(ModelSpec(model=str(folder)), "m", torch.float32) == expected
        assert weight_bytes(ModelSpec(model=str(folder)), "m", torch.bfloat16) == expected // 2


def test_a_budget_below_a_teacher_with_its_reference_is_refused_before_loading(
    folders: list[Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_nothing(*arguments: Any, **options: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(frozen, "load_model", load_nothing)
    for share in (0.5, 1.9):
        with pytest.raises(BadInput) as error:
            scorer_of(recipe_of(folders, share * size))
        expected = (
            "scoring.memory_gb",
            "teacher t1 with 0.0",
            "and reference (student's initial weights) with",
        )
        assert all(part in str(error.value) for part in (*expected, f"{2 * size / 1e9:.3g} GB"))
    alone = recipe_of(folders, 1.1 * size, objective={"reward_scale": 1})
    with pytest.raises(AssertionError, match="loaded"):  # no reference: it fits
        scorer_of(alone)


# --- equal weights --------------------------------------------------------------------------------------------------


def test_copies_and_links_of_a_model_are_one_model(folders: list[Path], tmp_path: Path) -> None:
    original, other = folders[1], folders[2]
    copy = shutil.copytree(original, tmp_path / "copy")
    (copy / "README.md").write_text("another text")
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in original.iterdir():
        (linked / path.name).symlink_to(path)
    (tmp_path / "link").symlink_to(copy)
    places = [original, copy, linked, tmp_path / "link", other]
    pool = FrozenModels(device=CPU, dtype=torch.float32)
    models = [pool.get(ModelSpec(model=str(place)), "m") for place in places]
    assert all(model is models[0] for model in models[:4]) and models[4] is not models[0]
    assert len(pool.models) == 2


def test_what_differs_in_anything_that_matters_is_another_model(folders: list[Path], tmp_path: Path) -> None:
    def changed(name: str) -> Path:
        return shutil.copytree(folders[1], tmp_path / name)

    assert not same_content(folders[1], folders[2]), "equal sizes, other weights"
    template = changed("template")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("assistant", "assistent")
    tokenizer.save_pretrained(template)
    config = changed("config")
    settings = json.loads((config / "config.json").read_text())
    settings["rms_norm_eps"] = 2e-06
    (config / "config.json").write_text(json.dumps(settings, indent=2))
    missing = changed("missing")
    (missing / "generation_config.json").unlink()
    last = changed("last")
    path = last / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    times = (folders[1] / path.name).stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for folder in (template, config, missing, last):
        assert not same_content(folders[1], folder), folder.name
    assert same_content(folders[1], changed("copy"))


# --- beyond scoring -------------------------------------------------------------------------------------------------


def test_updates_that_need_heads_are_the_same_to_the_bit(folders: list[Path], size: int) -> None:
    weights = []
    for memory in (None, 2 * size):
        recipe = recipe_of(folders[:4], memory, objective={"estimator": "full"})
        bench = Bench.of(recipe)
        bench.scorer = scorer_of(recipe)
        bench.learner.heads = bench.scorer.heads
        for _ in range(2):
            bench.update(rollouts_of(recipe, folders[0]))
        weights.append([p.detach().clone() for p in bench.student.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_run_is_the_same_with_a_budget(folders: list[Path], size: int, tmp_path: Path) -> None:
    """Teachers are validated too, with samplers that are made before any of them answers."""
    teachers = {f"t{i}": folders[i] for i in range(1, 5)}
    validation = held_out(tmp_path, 8, tuple(teachers), teachers=True)
    found = []
    for name, memory in (("plain", None), ("tight", 2.2 * size / 1e9)):
        tree = opd_tree(
            tmp_path,
            folders[0],
            teachers,
            validation=validation,
            scoring={"memory_gb": memory},
            tracking={"name": name},
        )
        found.append(loop.train(parse_recipe(tree)))
    plain, tight = found
    mine, theirs = student_weights(plain), student_weights(tight)
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    pairs = zip(lines(plain / "metrics.jsonl"), lines(tight / "metrics.jsonl"), strict=True)
    assert all(repeatable(one) == repeatable(other) for one, other in pairs)
    pairs = zip(lines(plain / "validation.jsonl"), lines(tight / "validation.jsonl"), strict=True)
    for one, other in pairs:
        for domain, figures in one["domains"].items():
            assert other["domains"][domain] == pytest.approx(figures, abs=1e-5)
