#!/usr/bin/env bash
# Photos to a model on Slurm: bash slurm.sh PHOTOS OUT. Both folders must be on a drive that all nodes share.
# Each sbatch waits for the one before. Submit again after a failure: what is complete is kept.
set -euo pipefail
photos=$(realpath "$1") out=$(realpath -m "$2") shards=16
run="python -m sfm_lightglue"
options=""  # such as "features=aliked features.max_keypoints=4096": the same for all commands
mkdir -p "$out"

submit() { sbatch --parsable --output="$out/slurm-%x-%A_%a.log" "$@"; }
shard="execution=shards execution.shard=\$SLURM_ARRAY_TASK_ID/$shards"
gpu="--array=1-$shards --gres=gpu:1 --cpus-per-task=8 --time=4:00:00"
cpu="--array=1-$shards --cpus-per-task=8 --time=4:00:00"

job=$(submit --job-name=extract $gpu --wrap="$run extract '$photos' '$out' $options $shard")
job=$(submit --job-name=pairs --dependency="afterok:$job" --wrap="$run merge output='$out' && $run pairs '$photos' '$out' $options")
job=$(submit --job-name=match $gpu --dependency="afterok:$job" --wrap="$run match '$photos' '$out' $options $shard")
job=$(submit --job-name=merge --dependency="afterok:$job" --wrap="$run merge output='$out'")
job=$(submit --job-name=verify $cpu --dependency="afterok:$job" --wrap="$run verify '$photos' '$out' $options $shard")
submit --job-name=reconstruct --cpus-per-task=16 --time=1-0 --dependency="afterok:$job" \
  --wrap="$run merge output='$out' && $run run '$photos' '$out' $options"
