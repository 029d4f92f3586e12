# ruff: noqa: E501  # one line per flag
"""verl's flags and what they are in a recipe: one line each. `docs/import-verl.md` is made from these tables.

Names, meanings and defaults are those of verl 0.6.1 with the additions of the published G-OPD code. That code calls
the teacher `ref` and the reference `base`.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

ABSENT = object()
"""No default that matters: a script that is silent about the flag leaves the recipe's own default."""

MODEL = "actor_rollout_ref.model."
ACTOR = "actor_rollout_ref.actor."
LOSS = "actor_rollout_ref.actor.policy_loss."
OPTIM = "actor_rollout_ref.actor.optim."
ROLLOUT = "actor_rollout_ref.rollout."
VAL = "actor_rollout_ref.rollout.val_kwargs."
REF = "actor_rollout_ref.ref."
CORRECTION = "algorithm.rollout_correction."
CHAT = "data.apply_chat_template_kwargs."


@dataclass(frozen=True)
class Mapped:
    """A flag with a key. `how` is empty where the value is taken over as it is; `rules.py` works out the others."""

    flag: str
    key: str
    default: Any = ABSENT
    """verl's own."""
    how: str = ""


@dataclass(frozen=True)
class Idle:
    """A flag that changes nothing here; one that ends in a dot stands for all that begin so.

    With `harmless` values given, others would mean something that has no place here: what, says `otherwise`.
    """

    flag: str
    why: str
    harmless: tuple[Any, ...] = ()
    otherwise: str = ""


MAPPED = (
    Mapped(LOSS + "only_reverse_kl_advantages", "method", False, "true: opd; false: grpo"),
    Mapped("algorithm.adv_estimator", "method", "gae", "grpo: grpo; others have no method here"),
    Mapped(MODEL + "path", "student.model", ABSENT, "required"),
    Mapped(MODEL + "trust_remote_code", "student.trust_remote_code", False, "for all models"),
    Mapped(MODEL + "enable_gradient_checkpointing", "student.gradient_checkpointing", True),
    Mapped(MODEL + "lora_rank", "student.lora.rank", 0, "0: none"),
    Mapped(MODEL + "lora_alpha", "student.lora.alpha", 16, "with a rank"),
    Mapped(MODEL + "target_modules", "student.lora.target_modules", "all-linear", "with a rank"),
    Mapped(CHAT + "enable_thinking", "student.view.enable_thinking"),
    Mapped(CHAT + "*", "student.view.chat_template_kwargs.*", ABSENT, "any other name"),
    Mapped(REF + "model.path", "teachers.teacher.model", None, "`teachers.math.model` with two teachers; in GRPO `reference.model`"),
    Mapped(REF + "model.base_model_path", "teachers.code.model", None, "with two teachers; with one it only switches λ on"),
    Mapped(MODEL + "base_model_path", "reference.model", None, "the student's own path: no section is needed"),
    Mapped(LOSS + "multi_teacher_distill", "teachers", False, "true: `math` and `code`, by `extra_info.opd_teacher`"),
    Mapped(LOSS + "lambda_vals", "objective.reward_scale", 1.0, "1 unless both base_model_path are set, as in the published code"),
    Mapped("algorithm.use_ref_solution_distillation", "teachers.teacher.view.template", False, "the row's `extra_info.ref_solution` behind the prompt"),
    Mapped(ACTOR + "loss_agg_mode", "objective.aggregation", "token-mean", "in GRPO `grpo.aggregation`; token-mean over micro-batches of one row is seq-mean-token-mean"),
    Mapped(ACTOR + "ppo_micro_batch_size_per_gpu", "train.tokens_per_micro_batch", None, "times prompt and response limit"),
    Mapped(ACTOR + "use_dynamic_bsz", "train.tokens_per_micro_batch", False, "true: ppo_max_token_len_per_gpu"),
    Mapped(ACTOR + "ppo_max_token_len_per_gpu", "train.tokens_per_micro_batch", 16384, "with use_dynamic_bsz"),
    Mapped("algorithm.norm_adv_by_std_in_grpo", "grpo.normalize", True, "GRPO only"),
    Mapped(ACTOR + "clip_ratio_low", "grpo.clip_low", 0.2, "GRPO only"),
    Mapped(ACTOR + "clip_ratio_high", "grpo.clip_high", 0.2, "GRPO only"),
    Mapped(ACTOR + "use_kl_loss", "grpo.kl_weight", False, "false: 0"),
    Mapped(ACTOR + "kl_loss_coef", "grpo.kl_weight", 0.001, "with use_kl_loss; in OPD only 0 has a meaning here"),
    Mapped(ACTOR + "kl_loss_type", "grpo.kl_weight", "low_var_kl", "low_var_kl and k3 are the estimate used here"),
    Mapped(CORRECTION + "rollout_is", "correction.level", None, "null: `correction.mode: off`"),
    Mapped(CORRECTION + "rollout_is_threshold", "correction.cap", 2.0, "with rollout_is"),
    Mapped(ROLLOUT + "calculate_log_probs", "correction.mode", False, "false: nothing is corrected"),
    Mapped("data.train_batch_size", "train.prompts_per_step", 1024),
    Mapped(ACTOR + "ppo_mini_batch_size", "train.mini_batches", 256, "train_batch_size / ppo_mini_batch_size"),
    Mapped(ACTOR + "ppo_epochs", "train.passes", 1),
    Mapped(OPTIM + "lr", "optim.lr", 1e-6),
    Mapped(OPTIM + "weight_decay", "optim.weight_decay", 0.01),
    Mapped(OPTIM + "betas", "optim.betas", [0.9, 0.999]),
    Mapped(ACTOR + "grad_clip", "optim.grad_clip", 1.0),
    Mapped(OPTIM + "lr_warmup_steps", "optim.warmup_steps", -1, "negative: by lr_warmup_steps_ratio; times optimizer steps per batch"),
    Mapped(OPTIM + "lr_warmup_steps_ratio", "optim.warmup_steps", 0.0, "above 0 needs trainer.total_training_steps"),
    Mapped(OPTIM + "lr_scheduler_type", "optim.schedule", "constant", "constant or cosine"),
    Mapped(OPTIM + "warmup_style", "optim.schedule", None, "older name of lr_scheduler_type"),
    Mapped(ROLLOUT + "name", "sampler.engine", ABSENT, "vllm and sglang: vllm; hf: torch"),
    Mapped(ROLLOUT + "n", "sampler.samples_per_prompt", 1),
    Mapped(ROLLOUT + "temperature", "sampler.temperature", 1.0),
    Mapped(ROLLOUT + "top_p", "sampler.top_p", 1.0),
    Mapped(ROLLOUT + "top_k", "sampler.top_k", -1, "-1: 0, no limit"),
    Mapped(ROLLOUT + "tensor_model_parallel_size", "sampler.vllm.tensor_parallel", 2, "with vLLM"),
    Mapped(ROLLOUT + "gpu_memory_utilization", "sampler.vllm.memory_share", 0.5, "with vLLM"),
    Mapped(ROLLOUT + "max_num_batched_tokens", "sampler.vllm.max_batched_tokens", 8192, "with vLLM"),
    Mapped(ROLLOUT + "max_num_seqs", "sampler.vllm.max_sequences", 1024, "with vLLM"),
    Mapped(ROLLOUT + "enforce_eager", "sampler.vllm.eager", False, "with vLLM"),
    Mapped(ROLLOUT + "free_cache_engine", "sampler.vllm.sleep", True, "with vLLM"),
    Mapped("data.train_files", "data.files", ABSENT, "required"),
    Mapped("data.train_max_samples", "data.limit", -1, "-1: all; here the first, in verl a draw where data.shuffle is true"),
    Mapped("data.prompt_key", "data.columns.prompt", "prompt", "of validation too"),
    Mapped("data.reward_fn_key", "data.columns.data_source", "data_source", "of validation too"),
    Mapped("data.max_prompt_length", "data.max_prompt_tokens", 512),
    Mapped("data.max_response_length", "data.max_response_tokens", 512),
    Mapped("data.filter_overlong_prompts", "data.overlong", False, "true: drop"),
    Mapped("data.truncation", "data.overlong", "error", "where they are not filtered: error, or left: truncate"),
    Mapped("data.shuffle", "data.shuffle", True),
    Mapped("data.seed", "train.seed", None, "the numbers drawn from it differ"),
    Mapped("data.val_files", "validation.files", ABSENT, "where the script validates at all"),
    Mapped("data.val_max_samples", "validation.limit", -1, "-1: all"),
    Mapped("trainer.test_freq", "validation.every", -1, "-1 without val_before_train: no validation section"),
    Mapped("trainer.val_before_train", "validation.before_training", True, "with a validation section"),
    Mapped(VAL + "n", "validation.samples_per_prompt", 1, "with a validation section"),
    Mapped(VAL + "do_sample", "validation.sampling.top_k", False, "false: 1, which is greedy"),
    Mapped(VAL + "temperature", "validation.sampling.temperature", 0, "0: `top_k: 1`, which is greedy"),
    Mapped(VAL + "top_p", "validation.sampling.top_p", 1.0, "with do_sample"),
    Mapped(VAL + "top_k", "validation.sampling.top_k", -1, "with do_sample; -1: 0, no limit"),
    Mapped("trainer.total_epochs", "train.epochs", 30, "without total_training_steps"),
    Mapped("trainer.total_training_steps", "train.steps", None, "instead of total_epochs"),
    Mapped("trainer.save_freq", "checkpoint.every", -1, "-1: 0, only the last"),
    Mapped("trainer.max_actor_ckpt_to_keep", "checkpoint.keep_last", None, "null: all in verl; the recipe's default here"),
    Mapped("trainer.logger", "tracking.trackers", ABSENT, "wandb, tensorboard, trackio; the console is always there"),
    Mapped("trainer.project_name", "tracking.project"),
    Mapped("trainer.experiment_name", "tracking.name"),
    Mapped("trainer.default_local_dir", "tracking.folder", ABSENT, "the run folder is a folder in it"),
    Mapped("trainer.log_val_generations", "tracking.show_generations", 0),
    Mapped("trainer.n_gpus_per_node", "cluster.learner_ranks", 8, "n_gpus_per_node × nnodes; roles share the devices: `cluster.colocate`"),
    Mapped("trainer.nnodes", "cluster.learner_ranks", 1, "likewise; by tensor_model_parallel_size: `cluster.sampler_replicas`"),
    Mapped(ACTOR + "fsdp_config.param_offload", "cluster.offload", False, "either of the two"),
    Mapped(ACTOR + "fsdp_config.optimizer_offload", "cluster.offload", False, "either of the two"),
)  # fmt: skip

IDLE = (
    Idle(MODEL + "use_remove_padding", "rows are always packed without padding"),
    Idle(MODEL + "use_fused_kernels", "head and loss are always fused"),
    Idle(MODEL + "fused_kernel_options.", "head and loss are always fused"),
    Idle(MODEL + "use_liger", "head and loss are always fused"),
    Idle(MODEL + "use_shm", "where files are copied to before they are read"),
    Idle(MODEL + "enable_activation_offload", "how memory is spent, not what is computed"),
    Idle(MODEL + "lora_adapter_path", "no adapter to begin with", (None,), "the student starts from an adapter; merge it into its base first"),
    Idle(MODEL + "custom_chat_template", "the tokenizer's own", (None,), "put the template into the student's tokenizer"),
    Idle(MODEL + "external_lib", "nothing is imported", (None,), "code of one's own is imported"),
    Idle(ACTOR + "strategy", "FSDP2 shards the student", ("fsdp", "fsdp2"), "Megatron is not supported"),
    Idle(REF + "strategy", "frozen models are not sharded", ("fsdp", "fsdp2"), "Megatron is not supported"),
    Idle(ACTOR + "fsdp_config.", "how FSDP shards; here FSDP2 with its defaults"),
    Idle(ACTOR + "ulysses_sequence_parallel_size", "a row is not spread over devices; micro-batches are packed by tokens"),
    Idle(ACTOR + "use_torch_compile", "nothing is compiled"),
    Idle(ACTOR + "entropy_from_logits_with_chunking", "head and loss always work in chunks"),
    Idle(ACTOR + "entropy_checkpointing", "head and loss always work in chunks"),
    Idle(ACTOR + "entropy_coeff", "no entropy bonus", (0,), "an entropy bonus, which is not supported"),
    Idle(ACTOR + "ppo_micro_batch_size", "older name of ppo_micro_batch_size_per_gpu", (None,), "an older flag; give ppo_micro_batch_size_per_gpu"),
    Idle(ACTOR + "clip_ratio", "verl reads it only where clip_ratio_low and clip_ratio_high are null"),
    Idle(ACTOR + "clip_ratio_c", "verl's own bound where a ratio is far off", (3.0,), "dual clipping with a bound of one's own"),
    Idle(ACTOR + "shuffle", "mini-batches keep the batch's order", (False,), "mini-batches in another order"),
    Idle(ACTOR + "checkpoint.", "what a checkpoint holds; here all that resuming needs, and the student as a plain folder"),
    Idle(ACTOR + "profiler.", "here `tracking.profile`"),
    Idle(OPTIM + "optimizer", "AdamW it is", ("AdamW",), "another optimizer"),
    Idle(OPTIM + "optimizer_impl", "AdamW it is", ("torch.optim",), "another optimizer"),
    Idle(OPTIM + "min_lr_ratio", "the schedule falls towards 0", (None, 0), "a schedule that ends above 0"),
    Idle(OPTIM + "num_cycles", "half a cosine", (0.5,), "another number of cycles"),
    Idle(OPTIM + "clip_grad", "verl clips by actor.grad_clip"),
    Idle(LOSS + "loss_mode", "the plain policy gradient", ("vanilla",), "another policy loss"),
    Idle(LOSS, "belongs to another loss_mode"),
    Idle(REF + "log_prob_", "how scoring is cut into micro-batches, which never changes it"),
    Idle(REF + "fsdp_config.", "frozen models: see `scoring.memory_gb`"),
    Idle(REF + "ulysses_sequence_parallel_size", "a row is not spread over devices"),
    Idle(REF + "use_torch_compile", "nothing is compiled"),
    Idle(ROLLOUT + "mode", "how verl calls the engine"),
    Idle(ROLLOUT + "log_prob_", "log-probs are taken in the update itself"),
    Idle(ROLLOUT + "prompt_length", "taken from data.max_prompt_length"),
    Idle(ROLLOUT + "response_length", "taken from data.max_response_length"),
    Idle(ROLLOUT + "dtype", "the engine computes as the learner does"),
    Idle(ROLLOUT + "max_model_len", "prompt and response limit"),
    Idle(ROLLOUT + "enable_chunked_prefill", "the engine's choice"),
    Idle(ROLLOUT + "enable_prefix_caching", "the engine's choice"),
    Idle(ROLLOUT + "cudagraph_capture_sizes", "the engine's choice"),
    Idle(ROLLOUT + "load_format", "the engine is always given the learner's weights"),
    Idle(ROLLOUT + "layered_summon", "weights always travel tensor by tensor"),
    Idle(ROLLOUT + "disable_log_stats", "the engine's own log"),
    Idle(ROLLOUT + "update_weights_bucket_megabytes", "pieces in which weights travel"),
    Idle(ROLLOUT + "agent.", "workers that ask the engine"),
    Idle(ROLLOUT + "do_sample", "responses are drawn", (True,), "greedy responses in training"),
    Idle(ROLLOUT + "ignore_eos", "a response ends with its end token", (False,), "responses that go on behind their end"),
    Idle(ROLLOUT + "multi_turn.enable", "one turn", (False,), "conversations with tools"),
    Idle(CORRECTION + "rollout_rs", "nothing is rejected", (None,), "rejection of tokens or rows; nearest is `correction.beyond: mask`"),
    Idle(CORRECTION + "rollout_rs_", "belongs to rollout_rs"),
    Idle(CORRECTION + "rollout_token_veto_threshold", "no veto", (None,), "rows are dropped for one token"),
    Idle(CORRECTION + "bypass_mode", "the trainer's own log-probs", (False,), "the sampler's log-probs in the trainer's place"),
    Idle(CORRECTION + "use_policy_gradient", "belongs to bypass_mode", (False,), "belongs to bypass_mode"),
    Idle(CORRECTION + "rollout_is_batch_normalize", "weights as they are", (False,), "weights of mean 1"),
    Idle("algorithm.gamma", "belongs to a critic; no reward is discounted here"),
    Idle("algorithm.lam", "belongs to a critic"),
    Idle("algorithm.kl_ctrl.", "belongs to use_kl_in_reward"),
    Idle("algorithm.kl_penalty", "belongs to use_kl_in_reward"),
    Idle("algorithm.use_kl_in_reward", "no KL in the reward", (False,), "a KL inside the reward; nearest is `grpo.kl_weight`"),
    Idle("algorithm.critique_vllm_url", "no critiques", (None,), "critiques of the student's own responses, which no prompt view can hold"),
    Idle("data.val_batch_size", "verl ignores it too"),
    Idle("data.return_raw_chat", "prompts are always kept as chats"),
    Idle("data.return_raw_input_ids", "nothing asks for it"),
    Idle("data.return_full_prompt", "nothing asks for it"),
    Idle("data.dataloader_num_workers", "rows are read once, before the run"),
    Idle("data.filter_overlong_prompts_workers", "rows are read once, before the run"),
    Idle("data.use_shm", "where files are copied to before they are read"),
    Idle("data.validation_shuffle", "the order changes nothing in validation"),
    Idle("data.trust_remote_code", "see actor_rollout_ref.model.trust_remote_code", (False,), "set actor_rollout_ref.model.trust_remote_code"),
    Idle("data.image_key", "text only"),
    Idle("data.video_key", "text only"),
    Idle("data.custom_cls.path", "rows are read as they are", (None,), "a data set class of one's own"),
    Idle("reward_model.enable", "no reward model", (False,), "a reward model; rewards come from verifiers here"),
    Idle("reward_model.reward_manager", "verifiers grade each response", ("naive", "prime", "batch"), "another reward manager"),
    Idle("reward_model.launch_reward_fn_async", "when rewards are computed, not what they are"),
    Idle("reward_model.sandbox_fusion.", "programs run in gopd's own sandbox"),
    Idle("custom_reward_function.path", "the verifiers", (None,), "a reward function of one's own; see `data.verifier`"),
    Idle("custom_reward_function.name", "belongs to custom_reward_function.path"),
    Idle("critic.", "no method here has a critic"),
    Idle("trainer.critic_warmup", "no method here has a critic", (0,), "steps without an update of the student"),
    Idle("trainer.balance_batch", "ranks always get about as many tokens as each other"),
    Idle("trainer.resume_mode", "here `gopd train … --resume`", ("auto", "disable"), "here `gopd train … --resume`, from the run's own last checkpoint"),
    Idle("trainer.val_only", "a run trains", (False,), "validation alone; here `gopd eval`"),
    Idle("trainer.rollout_data_dir", "rollouts are always kept, see `tracking.rollouts_every`"),
    Idle("trainer.validation_data_dir", "responses of validation are always kept"),
    Idle("trainer.device", "here `train.device`", ("cuda",), "a device that is not supported"),
    Idle("trainer.default_hdfs_dir", "nothing is copied elsewhere", (None,), "checkpoints on HDFS"),
    Idle("trainer.del_local_ckpt_after_load", "checkpoints stay"),
    Idle("trainer.max_critic_ckpt_to_keep", "no method here has a critic"),
    Idle("trainer.esi_redundant_time", "belongs to one cloud's machines"),
    Idle("trainer.ray_wait_register_center_timeout", "here `cluster.timeout`"),
    Idle("trainer.use_legacy_worker_impl", "which of verl's own workers run"),
    Idle("actor_rollout_ref.hybrid_engine", "here `cluster.colocate`"),
    Idle("actor_rollout_ref.nccl_timeout", "here `cluster.timeout`"),
    Idle("global_profiler.", "here `tracking.profile`"),
    Idle("ray_kwargs.", "how Ray is started; see docs/scaling.md"),
    Idle("ray_init.", "how Ray is started; see docs/scaling.md"),
    Idle("hydra.", "where Hydra writes"),
)  # fmt: skip

BY_FLAG = {row.flag: row for row in MAPPED}


def as_markdown() -> str:
    """Both tables, as they stand in docs/import-verl.md."""
    lines = ["| flag | recipe | how | verl's default |", "|---|---|---|---|"]
    for row in MAPPED:
        default = "" if row.default is ABSENT else f"`{json.dumps(row.default)}`"
        lines.append(f"| `{row.flag}` | `{row.key}` | {row.how or 'as it is'} | {default} |")
    lines += [
        "",
        "| flag | why it has no meaning here | with which values | otherwise |",
        "|---|---|---|---|",
    ]
    for idle in IDLE:
        flag = f"{idle.flag}*" if idle.flag[-1] in "._" else idle.flag
        values = ", ".join(f"`{json.dumps(value)}`" for value in idle.harmless) or "any"
        lines.append(f"| `{flag}` | {idle.why} | {values} | {idle.otherwise} |")
    return "\n".join(lines)


def idle_row(flag: str) -> Idle | None:
    """The row of a flag that changes nothing here: its own, else that of the longest beginning that has one."""
    fitting = [
        row for row in IDLE if flag == row.flag or (row.flag[-1] in "._" and flag.startswith(row.flag))
    ]
    return max(fitting, key=lambda row: len(row.flag), default=None)


def nearest(flag: str) -> str | None:
    """A known flag that may have been meant."""
    known = [*BY_FLAG, *(row.flag for row in IDLE)]
    return next(iter(difflib.get_close_matches(flag, known, n=1, cutoff=0.9)), None)
