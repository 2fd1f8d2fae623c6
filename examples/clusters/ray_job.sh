#!/usr/bin/env bash
# Runs on the head of the cluster of ray_aws.yaml.
set -euo pipefail
python -m sfm_lightglue run /shared/photos /shared/out \
  execution=ray execution.address=auto execution.num_actors=8 execution.num_gpus=1 execution.max_restarts=-1
