"""Sampling, rows, validation, the run and its devices."""

from __future__ import annotations

from gopd.errors import BadInput
from gopd.verl.account import Conversion
from gopd.verl.flags import ACTOR, ROLLOUT, VAL
from gopd.verl.rules_models import is_opd


def sampling(c: Conversion) -> None:
    """The engine; vLLM's settings where it is vLLM."""
    name = ROLLOUT + "name"
    engine = c.text(name) if c.given(name) else None
    if engine == "sglang":
        c.notes.append("SGLang is not supported: vLLM samples instead")
    if engine in ("vllm", "sglang"):
        c.put("sampler.engine", "vllm", name)
    elif engine == "hf":
        c.put("sampler.engine", "torch", name)
    elif engine is not None:
        c.lose("no such engine here; the recipe's default is left", name)
    top_k = c.integer(ROLLOUT + "top_k")
    c.put("sampler.top_k", max(top_k, 0), ROLLOUT + "top_k")
    rows = (
        ("tensor_model_parallel_size", "tensor_parallel"),
        ("gpu_memory_utilization", "memory_share"),
        ("max_num_batched_tokens", "max_batched_tokens"),
        ("max_num_seqs", "max_sequences"),
        ("enforce_eager", "eager"),
        ("free_cache_engine", "sleep"),
    )
    for flag, key in rows:
        if c.keys.get("sampler.engine") == "vllm":
            c.put(f"sampler.vllm.{key}", c.get(ROLLOUT + flag), ROLLOUT + flag)
        else:
            c.pass_over("belongs to vLLM", ROLLOUT + flag)


def data(c: Conversion) -> None:
    """Training rows."""
    files = "data.train_files"
    if not c.given(files):
        raise BadInput(f"the script names no rows: {files} is missing")
    c.put("data.files", c.texts(files), files)
    _limit(c, "data", "data.train_max_samples")
    filtered, cut, key = "data.filter_overlong_prompts", "data.truncation", "data.overlong"
    if c.switch(filtered):
        c.put(key, "drop", filtered)
        c.pass_over("longer prompts are dropped", cut)
    elif c.text(cut) in ("error", "left"):
        c.put(key, "truncate" if c.text(cut) == "left" else "error", cut, filtered)
    else:
        c.lose("prompts are cut from the left only; the recipe's default is left", cut)
    if c.get("data.seed") is not None:
        note = "the order that it gives is another one"
        c.put("train.seed", c.integer("data.seed"), "data.seed", note=note)
    c.pass_over("a seed of its own each time", "data.seed")
    for flag, column in (("data.prompt_key", "prompt"), ("data.reward_fn_key", "data_source")):
        c.put(f"data.columns.{column}", c.text(flag), flag)


def _limit(c: Conversion, section: str, flag: str) -> None:
    if c.integer(flag) > 0:
        c.put(f"{section}.limit", c.integer(flag), flag)
        if c.switch("data.shuffle"):
            c.notes.append(f"{flag}: the first rows of the files here, a random choice in verl")
    c.pass_over("all rows", flag)


def validation(c: Conversion) -> None:
    """Held-out rows; none where the script never validates."""
    files, every, before = "data.val_files", "trainer.test_freq", "trainer.val_before_train"
    many, limit = VAL + "n", "data.val_max_samples"
    draws, warmth, top_p, top_k = (VAL + name for name in ("do_sample", "temperature", "top_p", "top_k"))
    never = c.integer(every) <= 0 and not c.switch(before)
    if never or not c.given(files):
        why = (
            "the script never validates" if never else "no data.val_files, so there is no validation section"
        )
        c.pass_over(why, files, every, before, many, limit, draws, warmth, top_p, top_k)
        return
    c.put("validation.files", c.texts(files), files)
    _limit(c, "validation", limit)
    c.put("validation.every", max(c.integer(every), 0), every)
    c.put("validation.before_training", c.switch(before), before)
    c.put("validation.samples_per_prompt", c.integer(many), many)
    for flag, column in (("data.prompt_key", "prompt"), ("data.reward_fn_key", "data_source")):
        c.put(f"validation.columns.{column}", c.text(flag), flag)
    if is_opd(c) and "teachers.code.model" in c.keys:
        c.put("validation.route", "math")
        c.notes.append(
            "validation rows that name no teacher are measured against the math teacher's target "
            "(validation.route); accuracy does not depend on it"
        )
    elif is_opd(c):
        c.put("validation.columns.route", c.keys["data.columns.route"])
    section = "validation.sampling"
    if not c.switch(draws) or c.number(warmth) == 0:
        c.put(f"{section}.top_k", 1, draws, warmth, note="greedy")
        c.pass_over("validation is greedy", top_p, top_k, warmth)
        return
    c.put(f"{section}.temperature", c.number(warmth), warmth)
    c.put(f"{section}.top_p", c.number(top_p), top_p)
    c.put(f"{section}.top_k", max(c.integer(top_k), 0), top_k)
    c.explain(section, "drawn", draws)


def run(c: Conversion) -> None:
    """Length, checkpoints and where results go."""
    epochs, steps = "trainer.total_epochs", "trainer.total_training_steps"
    if c.get(steps) is not None:
        c.put("train.steps", c.integer(steps), steps)
        if c.given(epochs):
            c.notes.append(f"{steps} counts; verl would end sooner where {epochs} are over before")
        c.pass_over("total_training_steps counts", epochs)
    else:
        c.put("train.epochs", c.integer(epochs), epochs)
        c.pass_over("null: total_epochs counts", steps)
    c.put("checkpoint.every", max(c.integer("trainer.save_freq"), 0), "trainer.save_freq")
    keep = "trainer.max_actor_ckpt_to_keep"
    if c.get(keep) is not None:
        c.put("checkpoint.keep_last", c.integer(keep), keep)
    elif c.integer("trainer.save_freq") > 0:
        c.notes.append("verl keeps every checkpoint; here checkpoint.keep_last are kept")
    c.pass_over("null: all in verl; here the recipe's default", keep)
    if c.given("trainer.logger"):
        _trackers(c)
    for flag, key in (
        ("project_name", "project"),
        ("experiment_name", "name"),
        ("default_local_dir", "folder"),
    ):
        if c.given(f"trainer.{flag}"):
            c.put(f"tracking.{key}", c.text(f"trainer.{flag}"), f"trainer.{flag}")


def _trackers(c: Conversion) -> None:
    flag = "trainer.logger"
    named = [name for name in c.texts(flag) if name != "console"]
    known = [name for name in named if name in ("wandb", "tensorboard", "trackio")]
    c.put("tracking.trackers", known, flag)
    if others := sorted({*named} - {*known}):
        c.notes.append(f"{flag}: {', '.join(others)} left out; trackers are wandb, tensorboard and trackio")


def devices(c: Conversion) -> None:
    """verl lets all roles share all devices. Used with `gopd train --cluster` only."""
    each, nodes, width = "trainer.n_gpus_per_node", "trainer.nnodes", ROLLOUT + "tensor_model_parallel_size"
    count = c.integer(each) * c.integer(nodes)
    c.put("cluster.learner_ranks", count, each, nodes)
    vllm = c.keys.get("sampler.engine") == "vllm"
    wide = c.integer(width) if vllm else 1
    if count < 1 or count % wide:
        raise c.bad(
            width if vllm else each,
            f"{each} × {nodes} = {count} devices cannot be shared out to engines of {wide}; mend one of them",
        )
    c.put("cluster.sampler_replicas", count // wide, each, nodes)
    c.put("cluster.colocate", count > 1)
    offloads = [ACTOR + "fsdp_config.param_offload", ACTOR + "fsdp_config.optimizer_offload"]
    c.put("cluster.offload", any(c.switch(flag) for flag in offloads), *offloads)


RULES = (sampling, data, validation, run, devices)
