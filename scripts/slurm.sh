#!/usr/bin/env bash
# A run on several machines under SLURM: one launcher a node, one process a GPU.
#
#     sbatch --nodes 4 --gpus-per-node 8 scripts/slurm.sh --model sttm_llava_video --model_args ... --tasks ...
#
# Everything behind the script's name goes to `sttm-lmms eval`. The same job submitted again asks only what is not
# answered yet: the response cache is in $STTM_OUTPUT/cache. STTM_OUTPUT has to be on a file system that all nodes share.
#SBATCH --job-name=sttm-lmms
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: sbatch --nodes N --gpus-per-node G scripts/slurm.sh ARGUMENTS OF sttm-lmms eval" >&2; exit 2; }
output=${STTM_OUTPUT:-outputs/slurm}
nodes=${SLURM_JOB_NUM_NODES:?run this with sbatch}
gpus=${SLURM_GPUS_ON_NODE:-1}
master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs that share a node do not meet

# --kill-on-bad-exit: a node that dies ends the job at once instead of leaving the others to wait for it.
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$nodes" --nproc_per_node "$gpus" \
    --rdzv_backend c10d --rdzv_endpoint "$master:$port" --rdzv_id "$SLURM_JOB_ID" \
    -m sttm_lmms eval --log_samples --output_path "$output" --use_cache "$output/cache" "$@"
