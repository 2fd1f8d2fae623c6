#!/usr/bin/env bash
# Photos to a model on LSF: bash lsf.sh PHOTOS OUT. Both folders must be on a drive that all hosts share.
# Each bsub waits for the one before. Submit again after a failure: what is complete is kept.
set -euo pipefail
photos=$(realpath "$1") out=$(realpath -m "$2") shards=16
run="python -m sfm_lightglue"
options=""  # such as "features=aliked features.max_keypoints=4096": the same for all commands
mkdir -p "$out"

shard="execution=shards execution.shard=\$LSB_JOBINDEX/$shards"
gpu="-n 8 -gpu num=1 -W 4:00"
name=sfm-$$

bsub -J "$name-extract[1-$shards]" $gpu -oo "$out/lsf-extract-%I.log" "$run extract '$photos' '$out' $options $shard"
bsub -J "$name-pairs" -w "done($name-extract)" -oo "$out/lsf-pairs.log" \
  "$run merge output='$out' && $run pairs '$photos' '$out' $options"
bsub -J "$name-match[1-$shards]" $gpu -w "done($name-pairs)" -oo "$out/lsf-match-%I.log" "$run match '$photos' '$out' $options $shard"
bsub -J "$name-merge" -w "done($name-match)" -oo "$out/lsf-merge.log" "$run merge output='$out'"
bsub -J "$name-verify[1-$shards]" -n 8 -W 4:00 -w "done($name-merge)" -oo "$out/lsf-verify-%I.log" \
  "$run verify '$photos' '$out' $options $shard"
bsub -J "$name-reconstruct" -n 16 -w "done($name-verify)" -oo "$out/lsf-reconstruct.log" \
  "$run merge output='$out' && $run run '$photos' '$out' $options"
