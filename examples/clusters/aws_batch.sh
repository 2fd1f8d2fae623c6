#!/usr/bin/env bash
# Photos to a model on AWS Batch: bash aws_batch.sh PHOTOS OUT. Both folders are paths in the containers, on a file system that all of
# them mount (EFS or FSx). Batch counts from 0, shards count from 1.
# The job definitions run an image with this package; GPU has a GPU, CPU has none.
set -euo pipefail
photos=$1 out=$2 shards=16
queue=${QUEUE:-sfm} gpu=${GPU:-sfm-gpu} cpu=${CPU:-sfm-cpu}
run="python -m sfm_lightglue"
options=""  # such as "features=aliked features.max_keypoints=4096": the same for all commands
shard="execution=shards execution.shard=\$((AWS_BATCH_JOB_ARRAY_INDEX + 1))/$shards"
after=""

submit() { # NAME DEFINITION COMMAND [further options]: waits for the job before
  local name=$1 definition=$2 command=$3
  shift 3
  after=$(aws batch submit-job --job-name "$name" --job-queue "$queue" --job-definition "$definition" \
    ${after:+--depends-on "jobId=$after"} "$@" --query jobId --output text \
    --container-overrides "$(python3 -c 'import json, sys; print(json.dumps({"command": ["bash", "-c", sys.argv[1]]}))' "$command")")
  echo "$name: $after"
}

submit extract "$gpu" "$run extract '$photos' '$out' $options $shard" --array-properties "size=$shards"
submit pairs "$cpu" "$run merge output='$out' && $run pairs '$photos' '$out' $options"
submit match "$gpu" "$run match '$photos' '$out' $options $shard" --array-properties "size=$shards"
submit merge "$cpu" "$run merge output='$out'"
submit verify "$cpu" "$run verify '$photos' '$out' $options $shard" --array-properties "size=$shards"
submit reconstruct "$cpu" "$run merge output='$out' && $run run '$photos' '$out' $options"
