"""
Measure what one method costs beside another at real size: time, peak memory, parameters and operators.

    python benchmarks/method_cost.py configs/zegclip_voc_inductive.yaml configs/spt_seg_voc_inductive.yaml

The models are ViT-B/16 with random weights, whatever `model` says, and see random pictures and given class embeddings.
Inference is one picture, training two, forward and backward without the optimiser's step. Passes of all methods take
turns, so that what else the machine does falls on all of them; ratios are medians over turns. Memory is what a first
pass, in a process of its own, adds to model and inputs at its peak: on CUDA as the allocator counts, on Linux CPUs by
how far the process grew, which can miss what fits into memory that it already holds.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import get_peft_model
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.arguments import parse_arguments
from zegclip.files import replacing
from zegclip.processing.benchmarks_zegclip import benchmark_split

PASSES = ("inference", "training")
TOP_OPERATORS = 12


def build(path: Path, device: str) -> tuple[torch.nn.Module, dict[str, Callable[[], None]]]:
    """Return a configuration's model with random weights, and its passes as functions."""
    model_args, data_args, _ = parse_arguments([str(path), "--use_cpu"])
    split = benchmark_split(data_args.dataset)
    torch.manual_seed(0)
    base = ZegClipForSemanticSegmentation(ZegClipConfig(**model_args.config_overrides()))
    clip = base.config.clip_config
    side = data_args.crop_size or clip.vision_config.image_size
    grid_size = math.ceil(side / clip.vision_config.patch_size)
    model = get_peft_model(base, model_args.prompt_config(grid_size)).to(device)
    pictures = torch.randn(2, 3, side, side, device=device)
    embeds = torch.nn.functional.normalize(torch.randn(len(split.names), clip.projection_dim, device=device), dim=-1)
    labels = torch.randint(len(split.seen_ids), (2, side, side), device=device)

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            model(pixel_values=pictures[:1], class_embeds=embeds)

    def train() -> None:
        model.train()
        model.zero_grad()
        model(pixel_values=pictures, class_embeds=embeds[list(split.seen_ids)], labels=labels).loss.backward()

    return model, dict(zip(PASSES, (infer, train)))


def milliseconds(step: Callable[[], None], device: str) -> float:
    """Time one pass."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def peak_memory(path: Path, kind: str, device: str) -> float:
    """MB that a first pass adds at its peak."""
    _, passes = build(path, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        passes[kind]()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Building has needed more than is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    passes[kind]()
    return (resident_peak() - before) / 1e6


def resident_peak() -> int:
    """Highest resident memory of this process since it was last reset, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def operators(step: Callable[[], None], device: str) -> pd.DataFrame:
    """Profile one pass: milliseconds and calls of each operator, without what it calls, the most expensive first."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        step()
    rows = [
        {
            "operator": event.key,
            "calls": event.count,
            "ms": (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1000,
        }
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU  # kernels count for the operators that start them
    ]
    return pd.DataFrame(rows).set_index("operator").sort_values("ms", ascending=False)


def main() -> None:
    """Parse the command line, measure, print the tables and save them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, help="YAML configurations; ratios are to the first")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/method_cost.json"))
    arguments = parser.parse_args()

    names = [path.stem for path in arguments.configs]
    record: dict[str, dict[str, Any]] = {name: {} for name in names}
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for path, name in zip(arguments.configs, names):
            for kind in PASSES:
                memory = pool.submit(peak_memory, path, kind, arguments.device).result()
                record[name][kind] = {"peak_mb": memory}

    built = {path.stem: build(path, arguments.device) for path in arguments.configs}
    for name, (model, _) in built.items():
        record[name]["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for kind in PASSES:
        steps = {name: passes[kind] for name, (_, passes) in built.items()}
        for step in steps.values():
            step()  # warms up
        turns = [
            {name: milliseconds(step, arguments.device) for name, step in steps.items()}
            for _ in tqdm(range(arguments.repeats), desc=kind, unit="turn")
        ]
        for name, step in steps.items():
            times = [turn[name] for turn in turns]
            table = operators(step, arguments.device)
            record[name][kind] |= {
                "median_ms": statistics.median(times),
                "min_ms": min(times),
                "max_ms": max(times),
                "ratio": statistics.median(turn[name] / turn[names[0]] for turn in turns),
                "operators": table.reset_index().to_dict("records"),
            }

    rows = {
        (name, kind): {
            "ms, median (min to max)": "{median_ms:.0f} ({min_ms:.0f} to {max_ms:.0f})".format(**record[name][kind]),
            "time relative to the first": f"{record[name][kind]['ratio']:.2f}",
            "peak memory, MB": f"{record[name][kind]['peak_mb']:.0f}",
            "trained parameters": f"{record[name]['trained_parameters']:,}",
        }
        for kind in PASSES
        for name in names
    }
    print(pd.DataFrame(rows).T.to_markdown())
    for kind in PASSES:
        tables = {name: pd.DataFrame(record[name][kind]["operators"]).set_index("operator") for name in names}
        both = pd.concat(tables, axis="columns").fillna(0)
        # What one method does and another does not, or does more often, and what takes most time in any.
        different = both.xs("calls", axis="columns", level=1).nunique(axis="columns") > 1
        top = {operator for table in tables.values() for operator in table.index[:TOP_OPERATORS]}
        shown = both[different | both.index.isin(top)].loc[
            lambda rows: rows.xs("ms", axis=1, level=1).max(axis=1) >= 0.5
        ]
        print(f"\n{kind}, operators without what they call, and how often:\n")
        print(shown.to_markdown(floatfmt=".1f"))
    report = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}" if arguments.device == "cuda" else ""),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "methods": record,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
