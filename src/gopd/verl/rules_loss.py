"""Batches, loss, rollout correction and learning rate."""

from __future__ import annotations

from gopd.verl.account import Conversion
from gopd.verl.flags import ACTOR, CORRECTION, OPTIM, ROLLOUT
from gopd.verl.rules_models import is_opd


def updates(c: Conversion) -> int:
    """Optimizer steps in a batch."""
    return int(c.keys["train.mini_batches"] * c.integer(ACTOR + "ppo_epochs"))


def batch(c: Conversion) -> None:
    """How a batch is cut into optimizer steps."""
    flag = ACTOR + "ppo_mini_batch_size"
    prompts, mini = c.integer("data.train_batch_size"), c.integer(flag)
    if mini < 1 or mini > prompts or prompts % mini:
        raise c.bad(flag, f"data.train_batch_size ({prompts}) must be a multiple of it")
    c.put("train.mini_batches", prompts // mini, flag, note=f"{prompts} prompts / {mini}")


def aggregation(c: Conversion) -> None:
    """verl averages over each micro-batch, then over micro-batches; here it is always the whole batch."""
    flag, rows, dynamic = (
        ACTOR + "loss_agg_mode",
        ACTOR + "ppo_micro_batch_size_per_gpu",
        ACTOR + "use_dynamic_bsz",
    )
    limit, key = (
        ACTOR + "ppo_max_token_len_per_gpu",
        "objective.aggregation" if is_opd(c) else "grpo.aggregation",
    )
    mode, packed = c.text(flag), c.switch(dynamic)
    alone = not packed and c.get(rows) == 1
    if mode == "seq-mean-token-sum-norm":
        c.lose("a sum over the response limit, which is not supported; the recipe's default is left", flag)
    else:
        note = "of micro-batches of one row" if mode == "token-mean" and alone else ""
        c.put(key, "seq-mean-token-mean" if note else mode, flag, note=note)
        if mode == "token-mean" and not alone:
            c.notes.append(
                f"{key}: token-mean is that of the whole batch here; verl takes it over each micro-batch of several "
                "rows and averages these, which lies between token-mean and seq-mean-token-mean"
            )
    key = "train.tokens_per_micro_batch"
    if packed:
        c.put(key, c.integer(limit), limit)
        c.explain(key, c.keys[key], dynamic)
        c.pass_over("micro-batches are filled up to ppo_max_token_len_per_gpu", rows)
        return
    c.pass_over("without use_dynamic_bsz micro-batches are counted in rows", dynamic, limit)
    if c.get(rows) is not None:
        longest = c.integer("data.max_prompt_length") + c.integer("data.max_response_length")
        c.put(
            key,
            c.integer(rows) * longest,
            rows,
            note=f"{c.integer(rows)} × {longest} tokens; never changes the loss",
        )


def policy(c: Conversion) -> None:
    """Clipping and KL."""
    low, high, norm = ACTOR + "clip_ratio_low", ACTOR + "clip_ratio_high", "algorithm.norm_adv_by_std_in_grpo"
    use, weight, kind = ACTOR + "use_kl_loss", ACTOR + "kl_loss_coef", ACTOR + "kl_loss_type"
    if is_opd(c):
        _opd_policy(c, (low, high, ACTOR + "clip_ratio", ACTOR + "clip_ratio_c"), (use, weight, kind))
        c.pass_over("advantages are the teachers', and are not normalised", norm)
        return
    c.put("grpo.normalize", c.switch(norm), norm)
    for key, flag in (("grpo.clip_low", low), ("grpo.clip_high", high)):
        if c.get(flag) is None:
            raise c.bad(flag, "expected a number; write clip_ratio's value here")
        c.put(key, c.number(flag), flag)
    if updates(c) > 1:
        c.notes.append(
            "verl also bounds the loss where the ratio is above clip_ratio_c = 3 and the advantage negative; not here"
        )
    if not c.switch(use) or not c.number(weight):
        c.put("grpo.kl_weight", 0.0, weight if c.switch(use) else use)
        c.pass_over("no KL in the loss", use, weight, kind)
    elif c.text(kind) in ("low_var_kl", "k3"):
        c.put("grpo.kl_weight", c.number(weight), weight)
        c.explain("grpo.kl_weight", c.number(weight), use, kind)
    else:
        c.lose("another estimate of the KL than low_var_kl; grpo.kl_weight is left at 0", kind, weight, use)


def _opd_policy(c: Conversion, clips: tuple[str, ...], kl: tuple[str, str, str]) -> None:
    use, weight, kind = kl
    if updates(c) == 1:
        c.pass_over("one update per batch: the ratio is 1", *clips)
    else:
        c.lose("method opd does not clip; later updates are weighted by `correction`", *clips)
        c.notes.append(
            "several updates per batch: the published code clips their ratio, here `correction` weights them"
        )
    if c.switch(use) and c.number(weight):
        c.lose("a KL to the teacher beside the advantage, which is not supported", weight, use, kind)
        c.notes.append(
            f"{weight} is {c.number(weight):g}: the published loss has a KL to the teacher on top, this one has not"
        )
    if not c.switch(use):
        c.notes.append(f"{use} is false: the published code loads no teacher then; the recipe does")
    c.pass_over(
        "in the published code it loads the teacher; with weight 0 it adds nothing", use, weight, kind
    )


def correction(c: Conversion) -> None:
    """Weights for what the sampler's log-probs are off."""
    level, cap, known = (
        CORRECTION + "rollout_is",
        CORRECTION + "rollout_is_threshold",
        ROLLOUT + "calculate_log_probs",
    )
    if c.text(level) is not None and c.switch(known):
        if c.text(level) not in ("token", "sequence"):
            raise c.bad(level, "expected token, sequence or null")
        c.put("correction.level", c.text(level), level)
        c.put("correction.cap", c.number(cap), cap)
        c.explain("correction.mode", "auto", known)
        return
    if c.text(level) is not None:
        c.notes.append(f"{level} has no effect without {known}=True, so nothing is corrected")
    if is_opd(c) and updates(c) > 1:
        c.explain("correction.mode", "auto", level, known, note="several updates per batch need it")
        c.notes.append(
            "correction.mode stays auto though rollout_is is off: it weights the later updates of a batch"
        )
    else:
        c.put("correction.mode", "off", level, known)
    c.pass_over("nothing is corrected", cap)


def schedule(c: Conversion) -> None:
    """Warm-up counts steps of the run in verl, optimizer steps here."""
    steps, ratio = OPTIM + "lr_warmup_steps", OPTIM + "lr_warmup_steps_ratio"
    total, key = c.get("trainer.total_training_steps"), "optim.warmup_steps"
    if c.get(steps) is not None and c.integer(steps) >= 0:
        c.put(key, c.integer(steps) * updates(c), steps)
        c.pass_over("lr_warmup_steps comes first", ratio)
    elif not c.number(ratio):
        c.put(key, 0, ratio)
        c.explain(key, 0, steps)
    elif isinstance(total, int):
        c.put(
            key, int(c.number(ratio) * total) * updates(c), ratio, note=f"{c.number(ratio):g} × {total} steps"
        )
        c.explain(key, c.keys[key], steps)
    else:
        c.lose(
            "a share of steps whose number is not known here; set optim.warmup_steps, or trainer.total_training_steps",
            ratio,
        )
    new, old = OPTIM + "lr_scheduler_type", OPTIM + "warmup_style"
    flag = new if c.get(old) is None else old
    if c.text(flag) in ("constant", "cosine"):
        c.put("optim.schedule", c.text(flag), flag)
    else:
        c.lose("no such schedule here; the recipe's default is left", flag)
    c.pass_over("the other of the two names counts", new, old)


RULES = (batch, aggregation, policy, correction, schedule)
