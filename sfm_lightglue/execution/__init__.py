"""Spreads the jobs of a stage over threads, processes and devices, and shows progress. It does not know what the jobs compute."""

EXECUTORS = {
    "local": "sfm_lightglue.execution.local:LocalExecutor",
    "threads": "sfm_lightglue.execution.threads:ThreadExecutor",
    "processes": "sfm_lightglue.execution.processes:ProcessExecutor",
    "ray": "sfm_lightglue.execution.ray:RayExecutor",
    "shards": "sfm_lightglue.execution.shards:ShardExecutor",
}
"""Name in the configuration -> class, imported when it is chosen."""
