"""Everything about a GPU in one script of a few minutes: matching, extraction, and the whole pipeline from photos to a model.

    python benchmarks/gpu.py DATA OUT [--device cuda] [--parts matching extraction pipeline] [--results FILE | --no-append]

DATA holds `fountain_p11/images`. The section has the name of the card. `--device cpu` measures the same on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matching_worker import load_features, strongest
from measure import LOG, PeakMemory, append_section, clock_of, markdown_table, run_process, section
from torch.profiler import ProfilerActivity, profile

from sfm_lightglue.api import create_extractor, create_matcher, load_image
from sfm_lightglue.download import FetchError
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.images import list_images

PARTS = ("matching", "extraction", "pipeline")
KEYPOINTS, BATCHES, PRECISIONS = (512, 1024, 2048, 4096), (1, 8, 32, 128), ("float32", "low")
EXTRACTORS = ("superpoint", "aliked", "disk", "xfeat")
UNBOUND = {"early_acceptance": False, "guided_matching": False}
"""Each pair goes through the network, with its adaptive depth and width."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    images = options.data / "fountain_p11" / "images"
    measures = {"matching": matching_table, "extraction": extraction_table, "pipeline": pipeline_table}
    tables = [measures[part](images, options) for part in options.parts]
    clock = "CPU time of the process" if options.device == "cpu" else "wall time between synchronisations"
    settings = {
        "time": f"{clock}, at least {options.seconds} s for each row, after one call to warm up",
        "busy": "share of the wall time in which kernels run on the GPU (torch's profiler)",
    }
    text = section(f"GPU: {', '.join(options.parts)}", settings, tables, options.device)
    print(text)
    if options.results:
        append_section(options.results, text)


def matching_table(images: Path, options: argparse.Namespace) -> str:
    """Pairs a second of LightGlue with our weights, for each number of keypoints, precision and batch."""
    file = options.out / "features.h5"
    extractor = create_extractor("superpoint", device=options.device, max_keypoints=max(options.keypoints), resize_max=1600)
    extract_features(images, file, extractor)
    rows = []
    for count, precision in itertools.product(options.keypoints, options.precisions):
        matcher: Any = create_matcher("lightglue", device=options.device, precision=precision, **UNBOUND)
        with torch.inference_mode():
            states = [matcher.prepare(strongest(each, count)) for each in load_features(file, count)]
            pairs = [*itertools.combinations(states, 2)]
            for batch in options.batches:
                chosen = [*itertools.islice(itertools.cycle(pairs), batch)]
                rate = rate_of(lambda chosen=chosen, matcher=matcher: matcher.match_many(chosen), batch, options)
                rows.append([str(count), precision, str(batch), *rate])
    return "Matching, pairs of fountain_p11\n\n" + markdown_table(
        ["keypoints", "precision", "pairs a call", "pairs/s", "extra MB", "busy"], rows
    )


def extraction_table(images: Path, options: argparse.Namespace) -> str:
    """Photos a second of each kind of features, without decoding."""
    photos = [load_image(images / name) for name in list_images(images)]
    rows = []
    for name in options.extractors:
        try:
            extractor: Any = create_extractor(name, device=options.device)
        except FetchError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        call = getattr(extractor, "extract_many", lambda some, extractor=extractor: [*map(extractor, some)])
        size = getattr(extractor, "batch_size", 1)
        chosen = photos[:size]
        rows.append([name, str(len(chosen)), *rate_of(lambda chosen=chosen, call=call: call(chosen), len(chosen), options)])
    return "Extraction, default options\n\n" + markdown_table(["features", "photos a call", "photos/s", "extra MB", "busy"], rows)


def pipeline_table(images: Path, options: argparse.Namespace) -> str:
    """Seconds of each stage of a run, as a process of its own: the longest one bounds the time."""
    out = options.out / "run"
    given = [f"dataset.images={images}", f"output={out}", f"execution.device={options.device}", *options.override]
    cost = run_process([sys.executable, "-m", "sfm_lightglue", "run", "+dataset=folder", *given])
    stages = json.loads((out / "summary.json").read_text(encoding="utf-8"))["stages"]
    times = {name: record["seconds"] for name, record in stages.items()} | {"all, with start and report": cost.seconds}
    rows = [[name, f"{seconds:.1f}", f"{seconds / cost.seconds:.0%}"] for name, seconds in times.items()]
    return "From photos to a model, fountain_p11\n\n" + markdown_table(["stage", "s", "share"], rows)


def rate_of(call: Callable[[], object], count: int, options: argparse.Namespace) -> tuple[str, str, str]:
    """Items a second of a call that does `count` of them, its extra memory in MB, and the share of its time in kernels."""
    synchronised, is_gpu = clock_of(options.device), torch.device(options.device).type == "cuda"
    with torch.inference_mode():
        call()  # memory and kernels of the first use
        peak = PeakMemory(options.device)
        start, calls = synchronised(), 0
        while (seconds := synchronised() - start) < options.seconds:
            call()
            calls += 1
        rate, extra = f"{calls * count / seconds:.3g}", f"{peak.extra_mb():.0f}"
        if not is_gpu:
            return rate, extra, ""
        with profile(activities=[ProfilerActivity.CUDA]) as kernels:
            start = synchronised()
            call()
            seconds = synchronised() - start
    busy = sum(event.self_device_time_total for event in kernels.key_averages()) / 1e6
    return rate, extra, f"{busy / seconds:.0%}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--keypoints", type=int, nargs="+", default=list(KEYPOINTS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--extractors", nargs="+", default=list(EXTRACTORS))
    parser.add_argument("--seconds", type=float, default=2.0, help="smallest time of a measurement")
    parser.add_argument("--override", nargs="*", default=[], help="options of the run, key=value")
    parser.add_argument("--results", type=Path, default=LOG)
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no GPU here")
    if options.out.exists():
        parser.error(f"{options.out} exists already: choose another OUT, or remove it")
    options.out.mkdir(parents=True)
    return options


if __name__ == "__main__":
    main()
