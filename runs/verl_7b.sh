#!/usr/bin/env bash
# Multi-turn GRPO of a 7B policy with verl 0.9.1 on 8 GPUs; the reference's hyperparameters.
#
#     MODEL=Qwen/Qwen2.5-VL-7B-Instruct DATA=rows TOOL=medsam2:MedSAM2_latest.pt runs/verl_7b.sh
#
# DATA is a folder of `python -m ibisagent.training.verl_rows` with train.parquet and val.parquet.
# Further words are verl's own settings, such as trainer.nnodes=2. Not run where it was written: no
# GPU there. docs/training-verl.md says what was.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
: "${MODEL:?a folder or hub id, best an SFT checkpoint}" "${DATA:?a folder of rows}"
DATA="$(cd "$DATA" && pwd)"
export IBISAGENT_VERL_DATA="$DATA" IBISAGENT_VERL_TOOL="${TOOL:-embedded}"
export IBISAGENT_VERL_DEVICE="${DEVICE:-cpu}" IBISAGENT_VERL_PROFILE="${PROFILE:-shaped}"
export VERL_USE_EXTERNAL_MODULES=ibisagent.training.verl_advantage  # algorithm.adv_estimator=ibisagent

variables=(IBISAGENT_VERL_DATA IBISAGENT_VERL_TOOL IBISAGENT_VERL_DEVICE IBISAGENT_VERL_PROFILE
  VERL_USE_EXTERNAL_MODULES)
passed=()  # to the workers on every node
for name in "${variables[@]}"; do
  passed+=("+ray_kwargs.ray_init.runtime_env.env_vars.$name='${!name}'")
done

# prompt: system text 330, picture 334 at most, instruction. A turn adds picture, text and reply:
# 8 replies of 256 and 7 observations of about 420 tokens.
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo \
  algorithm.adv_estimator=ibisagent \
  algorithm.use_kl_in_reward=False \
  data.train_files="$DATA/train.parquet" \
  data.val_files="${VAL:-$DATA/val.parquet}" \
  data.train_batch_size=256 \
  data.max_prompt_length=1024 \
  data.max_response_length=5120 \
  actor_rollout_ref.model.path="$MODEL" \
  actor_rollout_ref.model.use_remove_padding=True \
  actor_rollout_ref.model.enable_gradient_checkpointing=True \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=128 \
  actor_rollout_ref.actor.use_dynamic_bsz=True \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
  actor_rollout_ref.actor.use_kl_loss=False \
  actor_rollout_ref.actor.entropy_coeff=0 \
  actor_rollout_ref.actor.loss_agg_mode=token-mean \
  actor_rollout_ref.rollout.name="${ROLLOUT:-vllm}" \
  actor_rollout_ref.rollout.n=4 \
  actor_rollout_ref.rollout.temperature=1.0 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
  actor_rollout_ref.rollout.max_model_len=6144 \
  actor_rollout_ref.rollout.agent.num_workers=8 \
  actor_rollout_ref.rollout.agent.agent_loop_config_path="$here/verl_agent_loop.yaml" \
  trainer.n_gpus_per_node=8 \
  trainer.nnodes=1 \
  trainer.save_freq=20 \
  trainer.test_freq=10 \
  trainer.total_epochs=1 \
  trainer.logger='["console","tensorboard"]' \
  trainer.project_name=ibisagent \
  trainer.experiment_name=verl_7b \
  "${passed[@]}" "$@"
