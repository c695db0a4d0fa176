"""What the benchmarks share: the command line, paired timing, memory, operations, tables and reports."""

import argparse
import datetime
import inspect
import json
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from zegclip.files import replacing

RESULTS = Path(__file__).parent / "results"
LIBRARIES = {"torch", "torchao", "transformers", "peft", "numpy", "opencv-python-headless", "pillow"}
LIBRARIES |= {"onnx", "onnxruntime", "onnxscript"}
# Sides of the square matrices whose product shows what the machine can do.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


def run_cases(description: str | None, *cases: Callable[..., dict[str, Any]]) -> None:
    """
    Parse the command line, run a case, print its figures and save them as JSON.

    Args:
        description: What `--help` says.
        cases: Functions that return figures by name. The first word of the command line is the name of one, if there
            are several; their arguments are its options, with the types of their defaults.
    """
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=text)
    parsers = {cases[0]: parser}
    if len(cases) > 1:
        named = parser.add_subparsers(metavar="CASE", required=True)
        parsers = {
            case: named.add_parser(case.__name__, description=inspect.getdoc(case), formatter_class=text)
            for case in cases
        }
    for case, own in parsers.items():
        for name, parameter in inspect.signature(case).parameters.items():
            default = parameter.default
            kind: dict[str, Any] = {"type": type(default)}
            if isinstance(default, tuple):
                kind = {"type": type(default[0]), "nargs": "+"}
            elif isinstance(default, bool):
                kind = {"action": argparse.BooleanOptionalAction}
            own.add_argument(f"--{name}", default=default, help="default: %(default)s", **kind)
        own.add_argument("--output", type=Path, help=f"JSON file to write (default: in {RESULTS})")
        own.set_defaults(case=case)
    options = vars(parser.parse_args())
    case, output = options.pop("case"), options.pop("output")
    name = "_".join([case.__name__, *([options["device"]] if "device" in options else [])])
    figures = case(**options)
    print_figures(figures)
    write_report(output or RESULTS / f"{name}.json", figures)


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print rows as tables in Markdown, without what has no place in a cell, and other figures by name."""
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            table = pd.DataFrame(value)
            table = table[[title for title in table if not table[title].map(pd.api.types.is_list_like).any()]]
            print(table.map(format_figure).to_markdown(index=False, disable_numparse=True), end="\n\n")
        else:
            print(f"{name}: {format_figure(value)}")


def format_figure(value: Any) -> str:
    """Write a number with five digits or more, and nothing for a missing one."""
    if not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if value != value:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def write_report(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with what they depend on beside the code of this repository."""
    cpu_info = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*: (.*)", cpu_info.read_text(encoding="utf-8")) if cpu_info.is_file() else None
    hardware = [f"{os.cpu_count()} cores", found[1] if found else platform.processor(), platform.machine()]
    hardware += [torch.backends.cpu.get_cpu_capability()]
    if torch.cuda.is_available():
        hardware.append(torch.cuda.get_device_name())
    installed = {one.name.lower(): one.version for one in distributions()}
    machine = {
        "date": datetime.date.today().isoformat(),
        "hardware": ", ".join(hardware),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: installed[name] for name in sorted(LIBRARIES & installed.keys())},
    }
    with replacing(path) as part:
        part.write_text(json.dumps(machine | dict(figures), indent=1) + "\n", encoding="utf-8")


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
    synchronize = torch.accelerator.synchronize if device != "cpu" else lambda: None
    times: dict[Any, list[float]] = {name: [] for name in steps}
    with tqdm(total=(repeats + warm_up) * len(steps), desc=title, unit="step") as progress:
        for turn in range(repeats + warm_up):
            for name, step in steps.items():
                synchronize()
                start = time.perf_counter()
                step()
                synchronize()
                if turn >= warm_up:
                    times[name].append(time.perf_counter() - start)
                progress.update()
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of some seconds, in milliseconds."""
    figures = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return {name: 1000 * seconds for name, seconds in figures.items()} | {"repeats": len(times)}


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over turns of one step's time relative to another's."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the power of the size that values grow with: the slope of a line through their logarithms."""
    return statistics.linear_regression(
        *(torch.tensor(list(some)).double().log().tolist() for some in (sizes, values))
    )[0]


def matrix_product(dtype: torch.dtype, device: str) -> tuple[Callable[[], Any], int]:
    """Return a product of two large square matrices as a step, and its floating-point operations."""
    side = MATRIX_SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2 * side**3


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


def count_syncs(step: Callable[[], Any]) -> int:
    """How often a step on CUDA makes the CPU wait for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def resident_peak() -> int:
    """Highest resident memory of this process since it was last reset, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a fresh process and return what it returns."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
