"""
How many pictures a second the work of whole commands does, and which share of the time the model has.

    python benchmarks/end_to_end.py

Folder segmentation (what `zegclip segment` runs: read, segment, write overlay, mask and JSON) and evaluation (what
`eval.py` runs: read picture and mask, segment, count classes), of JPEG pictures of VOC's size, with the embedded model
and with ViT-B/16 with random weights, in windows as the papers do. The share of the model is the time inside its
forward pass; what is done after it to find the best name of each pixel counts as the rest. Starting up, loading and
encoding the names, which are done once however many pictures there are, are in start_up.py and inference.py.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Image as ImageFeature
from input_pipeline import draw_pictures
from measuring import TIMES, ArgumentParser, alternate, in_own_process, print_table, spread, write_report
from real_size import build

import zegclip
from zegclip.loading import load_model, load_processor
from zegclip.processing.benchmarks import benchmark_split
from zegclip.processing.datasets import load_folder
from zegclip.processing.pipeline import TASK
from zegclip.segmenting.pictures import find_pictures, name_results
from zegclip.segmenting.segmenter import ClassMapPipeline, segment_pictures
from zegclip.training.counting import CountStore, Protocol, evaluate_pictures
from zegclip.training.pictures import EvaluationPictures

PICTURE_SIZE = (375, 500)


@contextmanager
def model_time(model: torch.nn.Module) -> Iterator[list[float]]:
    """Collect the seconds of each forward pass inside: negative at its start, positive at its end."""
    seconds: list[float] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter())),
        model.register_forward_hook(lambda *_: seconds.append(time.perf_counter())),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def measure(kind: str, count: int, repeats: int) -> list[dict[str, Any]]:
    """Run both commands' work with one model; a row of figures for each."""
    if kind == "ViT-B/16":
        model = build("ZegCLIP").eval()
        geometry = {"size": {"shortest_edge": 512, "longest_edge": 2048}, "window_size": 512, "window_stride": 426}
        processor = load_processor(zegclip.DEFAULT_MODEL, **geometry)
    else:
        model = load_model(zegclip.DEFAULT_MODEL)
        processor = load_processor(zegclip.DEFAULT_MODEL)
    split = benchmark_split("voc")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        draw_pictures(folder / "data", count, *PICTURE_SIZE, objects=True)
        data = load_folder(folder / "data")["train"]
        for column in ("image", "mask"):
            data = data.cast_column(column, ImageFeature(decode=False))
        evaluated = EvaluationPictures(data, split, processor.image_processor)
        segmenter = ClassMapPipeline(model=model, processor=processor, task=TASK, device="cpu")
        with torch.inference_mode():
            tokens = processor(text=list(split.names), return_tensors="pt")
            embeds = model.get_class_embeds(**tokens, num_templates=len(processor.prompt_templates))
        windows = processor.image_processor
        protocol = Protocol(windows.window_size, windows.window_stride, 0.1)
        passes: dict[str, list[list[float]]] = {"segment a folder": [], "evaluate": []}

        def segment() -> None:
            named = dict(name_results(find_pictures([folder / "data" / "images"])))
            with model_time(model) as seconds:
                segment_pictures(segmenter, named, list(split.names), folder / "out", "model", show_progress=False)
            passes["segment a folder"].append(seconds)

        def evaluate() -> None:
            place = folder / f"counts{len(passes['evaluate'])}"
            place.mkdir()
            with model_time(model) as seconds:
                evaluate_pictures(model, embeds, evaluated, {"papers": protocol}, CountStore(place, {}), batch_size=8)
            passes["evaluate"].append(seconds)

        times = alternate({"segment a folder": segment, "evaluate": evaluate}, repeats, title=kind)
    rows = []
    for command, seconds in times.items():
        shares = [sum(inside) / whole for inside, whole in zip(passes[command][1:], seconds, strict=True)]
        row = {"model": kind, "command": command, **spread(seconds), "pictures": count}
        rows.append(
            row | {"pictures_per_s": 1000 * count / row["median_ms"], "share_of_model": statistics.median(shares)}
        )
    return rows


COLUMNS = {
    "model": "{model}",
    "command": "{command}",
    "pictures": "{pictures}",
    **TIMES,
    "pictures/s": "{pictures_per_s:.2f}",
    "share of the model": "{share_of_model:.0%}",
}


def main() -> None:
    """Parse the command line, measure, print the table and save it as JSON."""
    parser = ArgumentParser(__doc__, "end_to_end.json", repeats=5)
    parser.add_argument("--pictures", nargs=2, type=int, default=[60, 4], help="for the embedded model, for ViT-B/16")
    arguments = parser.parse_args()

    rows = []
    for kind, count in zip(("embedded model", "ViT-B/16"), arguments.pictures, strict=True):
        rows += in_own_process(measure, kind, count, arguments.repeats)
    print_table(rows, COLUMNS)
    write_report(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
