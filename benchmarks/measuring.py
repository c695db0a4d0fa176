"""What the benchmarks share: options, paired timing, memory, operations, the machine and its limits, and reports."""

import argparse
import copy
import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from zegclip.files import replacing

RESULTS = Path(__file__).parent / "results"
# Sides of the square matrices whose product shows what the machine can do, and MB of a copy that no cache holds.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_MB = 512


class ArgumentParser(argparse.ArgumentParser):
    """A parser with the options that all benchmarks have."""

    def __init__(self, description: str | None, output: str | None = None, repeats: int | None = None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        if output is not None:
            self.add_argument("--output", type=Path, default=RESULTS / output, help="JSON file to write")
        if repeats is not None:
            self.add_argument("--repeats", type=int, default=repeats, help="measurements of each figure")


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on beside the code of this repository."""
    cpu_info = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*: (.*)", cpu_info.read_text(encoding="utf-8")) if cpu_info.is_file() else None
    parts = [
        f"{os.cpu_count()} cores",
        found[1] if found else platform.processor(),
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": ", ".join(parts),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (torch, transformers, peft)},
    }


def synchronize(device: str) -> None:
    """Wait until an accelerator has done what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def alternate(
    steps: Mapping[Any, Callable[[], Any]], repeats: int, device: str = "cpu", *, title: str = "", warm_up: int = 1
) -> dict[Any, list[float]]:
    """
    Time steps in turns, so that what else the machine does falls on all of them.

    Args:
        steps: Functions without arguments.
        repeats: Turns that count.
        device: That the steps use.
        title: For the progress bar.
        warm_up: Turns before those.

    Returns:
        Seconds of each step, one for each turn.
    """
    times: dict[Any, list[float]] = {name: [] for name in steps}
    with tqdm(total=(repeats + warm_up) * len(steps), desc=title, unit="step") as progress:
        for turn in range(repeats + warm_up):
            for name, step in steps.items():
                synchronize(device)
                start = time.perf_counter()
                step()
                synchronize(device)
                if turn >= warm_up:
                    times[name].append(time.perf_counter() - start)
                progress.update()
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of some seconds, in milliseconds."""
    return {
        "median_ms": statistics.median(times) * 1000,
        "min_ms": min(times) * 1000,
        "max_ms": max(times) * 1000,
        "repeats": len(times),
    }


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over turns of one step's time relative to another's."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def matrix_product(dtype: torch.dtype, device: str) -> tuple[Callable[[], Any], int]:
    """Return a product of two large square matrices as a step, and its floating-point operations."""
    side = MATRIX_SIDE["cpu" if device == "cpu" else "cuda"]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2 * side**3


def memory_copy(device: str) -> Callable[[], Any]:
    """Return a copy of a large tensor as a step, which reads and writes `COPIED_MB` each."""
    source = torch.ones(COPIED_MB * 250_000, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def count_flops(model: torch.nn.Module, step: Callable[[], Any]) -> int:
    """
    Count the floating-point operations of matrix products and convolutions in one step of a model.

    Attention is computed eagerly for that: the counter does not know the fused kernels of CPUs.
    """
    configs = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "to_dict")]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        with FlopCounterMode(display=False) as counter:
            step()
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
    return counter.get_total_flops()


def quantize_vision_tower(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model of ours whose vision tower multiplies in int8, by torchao's dynamic quantization."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(
        model,
        Int8DynamicActivationInt8WeightConfig(),
        lambda module, name: isinstance(module, torch.nn.Linear) and ".vision_model." in f".{name}",
    )
    return model


def added_memory(step: Callable[[], Any], device: str = "cpu") -> float:
    """
    MB that a first step needs at its peak, above what is held before it. Call it in a process of its own.

    On CUDA as the allocator counts; on Linux CPUs by how far the process grows, which can miss what fits into memory
    that it already holds.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Building has needed more than is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    step()
    return (resident_peak() - before) / 1e6


def resident_peak() -> int:
    """Highest resident memory of this process since it was last reset, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a fresh process and return what it returns."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the power of the size that values grow with: the slope of a line through their logarithms."""
    logs = [torch.tensor(list(numbers), dtype=torch.float64).log() for numbers in (sizes, values)]
    x, y = (log - log.mean() for log in logs)
    return float((x * y).sum() / (x * x).sum())


def times_text(row: Mapping[str, float]) -> str:
    """Write a spread as `median (lowest to highest)`."""
    digits = 0 if row["median_ms"] >= 100 else 1 if row["median_ms"] >= 1 else 3
    return f"{row['median_ms']:,.{digits}f} ({row['min_ms']:,.{digits}f} to {row['max_ms']:,.{digits}f})"


TIMES = {"ms, median (lowest to highest)": times_text}
"""The column of a table that shows a spread."""


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str | Callable[[Any], str]]) -> None:
    """
    Print rows as Markdown.

    Args:
        rows: Figures by name.
        columns: For each title a format string with names of figures, or a function of the row. A row without those
            figures has an empty cell.
    """

    def cell(row: Mapping[str, Any], form: str | Callable[[Any], str]) -> str:
        try:
            return form.format_map(row) if isinstance(form, str) else form(row)
        except KeyError:
            return ""

    table = pd.DataFrame([{title: cell(row, form) for title, form in columns.items()} for row in rows])
    print(table.to_markdown(index=False, disable_numparse=True))


def write_report(path: Path, figures: Mapping[str, Any], *libraries: Any) -> None:
    """Write figures as JSON, with the machine, date and versions, those of further libraries included."""
    machine = describe_machine()
    machine["versions"] |= {library.__name__: library.__version__ for library in libraries}
    with replacing(path) as part:
        part.write_text(json.dumps(machine | dict(figures), indent=1) + "\n", encoding="utf-8")
