"""
Measure what one method costs beside another at real size: time, peak memory and trained parameters.

    python benchmarks/method_cost.py configs/zegclip_voc_inductive.yaml configs/spt_seg_voc_inductive.yaml \\
        configs/ldvc_voc_inductive.yaml --num_names 20 171

The models are ViT-B/16 with random weights, whatever `model` says, and see random pictures. Inference is one picture
with given class embeddings, training two pictures, forward and backward without the optimiser's step. There, a method
with text prompts encodes all names anew in each step, as the Trainer does, however many pictures the step has.

Passes of all methods take turns, so that what else the machine does falls on all of them; time ratios are medians over
turns. Memory is what a first pass, in a process of its own, adds to model and inputs at its peak: on CUDA as the
allocator counts, on Linux CPUs by how far the process grew, which can miss what fits into memory that it already
holds.
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
from tqdm import tqdm

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.arguments import parse_arguments
from zegclip.files import replacing

PASSES = ("inference", "training")
# "a photo of a" by CLIP's tokenizer, and how many tokens a name behind it has.
TEMPLATE_IDS = [49406, 320, 1125, 539, 320, 49407]
NAME_LENGTH = 3


def build(path: Path, num_names: int, device: str) -> tuple[torch.nn.Module, dict[str, Callable[[], None]]]:
    """Return a configuration's model with random weights, and its passes as functions."""
    model_args, data_args, _ = parse_arguments([str(path), "--use_cpu"])
    torch.manual_seed(0)
    base = ZegClipForSemanticSegmentation(ZegClipConfig(**model_args.config_overrides()))
    clip = base.config.clip_config
    side = data_args.crop_size or clip.vision_config.image_size
    grid_size = math.ceil(side / clip.vision_config.patch_size)
    model = get_peft_model(base, model_args.prompt_config(grid_size, TEMPLATE_IDS)).to(device)
    pictures = torch.randn(2, 3, side, side, device=device)
    labels = torch.randint(num_names, (2, side, side), device=device)
    embeds = torch.nn.functional.normalize(torch.randn(num_names, clip.projection_dim, device=device), dim=-1)
    names = {"class_embeds": embeds}
    if model_args.text_prompts is not None:
        *template, end = TEMPLATE_IDS
        words = torch.randint(1000, end - 1, (num_names, NAME_LENGTH)).tolist()
        names = {"input_ids": torch.tensor([[*template, *name, end] for name in words], device=device)}

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            model(pixel_values=pictures[:1], class_embeds=embeds)

    def train() -> None:
        model.train()
        model.zero_grad()
        model(pixel_values=pictures, labels=labels, **names).loss.backward()

    return model, dict(zip(PASSES, (infer, train)))


def milliseconds(step: Callable[[], None], device: str) -> float:
    """Time one pass."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def peak_memory(path: Path, num_names: int, kind: str, device: str) -> float:
    """MB that a first pass adds at its peak."""
    _, passes = build(path, num_names, device)
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


def measure(paths: list[Path], num_names: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """Measure all configurations side by side: one row of figures for each pass of each."""
    memory = {}
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for path in paths:
            for kind in PASSES:
                memory[path, kind] = pool.submit(peak_memory, path, num_names, kind, device).result()
    built = {path: build(path, num_names, device) for path in paths}
    rows = []
    for kind in PASSES:
        steps = {path: passes[kind] for path, (_, passes) in built.items()}
        for step in steps.values():
            step()  # warms up
        turns = [
            {path: milliseconds(step, device) for path, step in steps.items()}
            for _ in tqdm(range(repeats), desc=f"{kind}, {num_names} names", unit="turn")
        ]
        for path, (model, _) in built.items():
            times = [turn[path] for turn in turns]
            rows.append(
                {
                    "names": num_names,
                    "pass": kind,
                    "configuration": path.stem,
                    "median_ms": statistics.median(times),
                    "min_ms": min(times),
                    "max_ms": max(times),
                    "time_ratio": statistics.median(turn[path] / turn[paths[0]] for turn in turns),
                    "peak_mb": memory[path, kind],
                    "memory_ratio": memory[path, kind] / memory[paths[0], kind],
                    "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                }
            )
    return rows


def main() -> None:
    """Parse the command line, measure, print the table and save it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, help="YAML configurations; ratios are to the first")
    parser.add_argument("--num_names", nargs="+", type=int, default=[20, 171], help="numbers of class names")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/method_cost.json"))
    arguments = parser.parse_args()

    rows = []
    for num_names in arguments.num_names:
        rows += measure(arguments.configs, num_names, arguments.repeats, arguments.device)
    columns = {
        "ms, median (min to max)": "{median_ms:.0f} ({min_ms:.0f} to {max_ms:.0f})",
        "time relative to the first": "{time_ratio:.2f}",
        "peak memory, MB": "{peak_mb:.0f}",
        "memory relative to the first": "{memory_ratio:.2f}",
        "trained parameters": "{trained_parameters:,}",
    }
    table = [
        {name: row[name] for name in ("names", "pass", "configuration")}
        | {title: text.format(**row) for title, text in columns.items()}
        for row in rows
    ]
    print(pd.DataFrame(table).to_markdown(index=False, disable_numparse=True))
    report = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}" if arguments.device == "cuda" else ""),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
