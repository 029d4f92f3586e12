set -x
export PYTHONUNBUFFERED=1
ROWS=${ROWS:-rows}
STUDENT=small/base

COMMON=(
    algorithm.adv_estimator=grpo
    data.train_files=${ROWS}/train.parquet
    data.train_batch_size=4
    data.max_prompt_length=128 data.max_response_length=8   # tokens
    data.filter_overlong_prompts=True
    actor_rollout_ref.model.path=$STUDENT
    actor_rollout_ref.actor.ppo_mini_batch_size=4
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1
    trainer.n_gpus_per_node=1
)

# two teachers
python3 -m verl.trainer.main_ppo "${COMMON[@]}" \
    data.val_files="['$ROWS/held.parquet']" \
    +actor_rollout_ref.model.base_model_path=$STUDENT \
    +actor_rollout_ref.ref.model.path=math/expert \
    +actor_rollout_ref.ref.model.base_model_path=code/expert \
    actor_rollout_ref.actor.policy_loss.only_reverse_kl_advantages=True \
    actor_rollout_ref.actor.policy_loss.lambda_vals=1.25 \
    actor_rollout_ref.actor.policy_loss.multi_teacher_distill=true \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.kl_loss_coef=0 \
    trainer.experiment_name=merged \
    trainer.test_freq=5 "$@"

# the model itself, which sees a solution
python3 -m verl.trainer.main_ppo "${COMMON[@]}" \
    +data.apply_chat_template_kwargs.enable_thinking=False \
    +actor_rollout_ref.ref.model.path=$STUDENT \
    actor_rollout_ref.actor.policy_loss.only_reverse_kl_advantages=True \
    actor_rollout_ref.actor.policy_loss.lambda_vals=1.0 \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.kl_loss_coef=0 \
    actor_rollout_ref.rollout.n=2 \
    +algorithm.use_ref_solution_distillation=True \
    trainer.experiment_name=context "$@"

# a teacher by reinforcement learning
HYDRA_FULL_ERROR=1 nohup python3 -u -m verl.trainer.main_ppo "${COMMON[@]}" \
    data.train_batch_size=2 \
    actor_rollout_ref.actor.ppo_mini_batch_size=1 \
    actor_rollout_ref.rollout.n=4 \
    actor_rollout_ref.rollout.name=hf \
    actor_rollout_ref.actor.clip_ratio_high=0.28 \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.kl_loss_coef=0.001 \
    trainer.experiment_name=expert "$@" 2>&1 | tee expert.log
