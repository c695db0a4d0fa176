"""
What whole commands cost: from nothing to the first mask, and many pictures.

    python benchmarks/commands.py start_up
    python benchmarks/commands.py end_to_end
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Image as ImageFeature
from input_pipeline import draw_pictures
from measuring import alternate, in_own_process, run_cases, spread
from real_size import build

import zegclip
from zegclip.loading import load_model, load_processor
from zegclip.processing.benchmarks import benchmark_split
from zegclip.processing.datasets import load_folder
from zegclip.processing.pipeline import TASK
from zegclip.segmenting.pictures import find_pictures, name_results
from zegclip.segmenting.segmenter import ProgressPipeline, segment_pictures
from zegclip.training.counting import CountStore, Protocol, evaluate_pictures
from zegclip.training.pictures import EvaluationPictures

PROGRAMS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import transformers": "import transformers",
    "transformers' own CLIPModel and pipeline": "from transformers import CLIPModel, pipeline",
    "import zegclip": "import zegclip",
    "import zegclip, and a class of it": "from zegclip import ZegClipForSemanticSegmentation",
    "the default pipeline": "import zegclip\nfrom transformers import pipeline\n"
    "segmenter = pipeline('zero-shot-image-segmentation', model=zegclip.DEFAULT_MODEL)",
}
PICTURE_SIZE = (375, 500)  # of VOC


def start_up(repeats: int = 7) -> dict[str, Any]:
    """
    How long it takes from nothing to the first mask, and what a loaded pipeline holds at rest.

    Each step is a process of its own; they take turns, so files come from the operating system's memory for all of
    them. `zegclip segment` segments one picture with the embedded model into three names.
    """
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder) / "data", 1, *PICTURE_SIZE, objects=True)
        segment = ["segment", f"{folder}/data/images", "--labels", "house, boat, sky", "--output", f"{folder}/masks"]
        words = {name: ["-c", code] for name, code in PROGRAMS.items()}
        words["zegclip --help"] = ["-m", "zegclip", "--help"]
        words["zegclip segment"] = ["-m", "zegclip", *segment, "--overwrite"]
        steps = {
            name: partial(subprocess.run, [sys.executable, *some], check=True, capture_output=True)
            for name, some in words.items()
        }
        times = alternate(steps, repeats, title="start-up")
    rows: list[dict[str, Any]] = [{"step": name, **spread(seconds)} for name, seconds in times.items()]
    for row, code in zip(rows, PROGRAMS.values()):
        row["at_rest_mb"] = memory_at_rest(code)
    return {"rows": rows}


def memory_at_rest(code: str) -> float:
    """MB that a process holds after a program."""
    words = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if "ready\n" not in iter(process.stdout.readline, ""):
            raise RuntimeError(f"{code!r} has ended with status {process.wait()}.")
        held = psutil.Process(process.pid).memory_info().rss / 1e6
        process.communicate("")
    return held


def end_to_end(pictures: Sequence[int] = (60, 4), repeats: int = 5, device: str = "cpu") -> dict[str, Any]:
    """
    How many pictures a second the work of whole commands does, and which share of the time the model has.

    Folder segmentation (what `zegclip segment` runs: read, segment, write overlay, mask and JSON) and evaluation (what
    `eval.py` runs: read picture and mask, segment, count classes), of JPEG pictures of VOC's size, as many as
    `--pictures` says for the embedded model and for ViT-B/16 with random weights, in windows as the papers do. The
    share of the model is the time inside its forward pass, on CPUs; what is done after it to find the best name of
    each pixel counts as the rest. Starting up, loading and encoding the names, which are done once however many
    pictures there are, are measured by `start_up` and `speed.py inference`.
    """
    kinds = zip(("embedded model", "ViT-B/16"), pictures, strict=True)
    return {
        "rows": [row for kind, count in kinds for row in in_own_process(run_commands, kind, count, repeats, device)]
    }


def run_commands(kind: str, count: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """Run both commands' work with one model; a row of figures for each."""
    geometry: dict[str, Any] = {}
    if kind == "ViT-B/16":
        model = build("ZegCLIP").eval()
        geometry = {"size": {"shortest_edge": 512, "longest_edge": 2048}, "window_size": 512, "window_stride": 426}
    else:
        model = load_model(zegclip.DEFAULT_MODEL)
    model.to(device)
    processor = load_processor(zegclip.DEFAULT_MODEL, **geometry)
    images = processor.image_processor
    split = benchmark_split("voc")
    passes: list[float] = []  # seconds of forward passes: negative at their start, positive at their end

    if device == "cpu":  # An accelerator is still computing when the forward pass returns.
        model.register_forward_pre_hook(lambda *_: passes.append(-time.perf_counter()))
        model.register_forward_hook(lambda *_: passes.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        draw_pictures(folder / "data", count, *PICTURE_SIZE, objects=True)
        data = load_folder(folder / "data")["train"]
        for column in ("image", "mask"):
            data = data.cast_column(column, ImageFeature(decode=False))
        evaluated = EvaluationPictures(data, split, images)
        settings = {"task": TASK, "device": device, "output_type": "class_map"}
        segmenter = ProgressPipeline(model=model, processor=processor, **settings)
        with torch.inference_mode():
            tokens = processor(text=list(split.names), return_tensors="pt").to(device)
            embeds = model.get_class_embeds(**tokens)
        protocols = {"papers": Protocol(images.window_size, images.window_stride, 0.1)}
        inside: dict[str, list[float]] = {}

        def segment() -> None:
            found = dict(name_results(find_pictures([folder / "data" / "images"])))
            segment_pictures(segmenter, found, list(split.names), folder / "out", "model", show_progress=False)

        def evaluate() -> None:
            with tempfile.TemporaryDirectory() as counts:
                evaluate_pictures(model, embeds, evaluated, protocols, CountStore(Path(counts), {}), batch_size=16)

        def in_model(name: str, step: Callable[[], None]) -> None:
            passes.clear()
            step()
            inside.setdefault(name, []).append(sum(passes))

        steps = {"segment a folder": segment, "evaluate": evaluate}
        times = alternate({name: partial(in_model, name, step) for name, step in steps.items()}, repeats, title=kind)
    rows = []
    for command, seconds in times.items():
        row = {"model": kind, "command": command, **spread(seconds), "pictures": count}
        row["pictures_per_s"] = 1000 * count / row["median_ms"]
        if device == "cpu":
            shares = (within / whole for within, whole in zip(inside[command][1:], seconds, strict=True))
            row["share_of_model"] = statistics.median(shares)
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_cases(__doc__, start_up, end_to_end)
