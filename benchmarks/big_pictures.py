"""
Big pictures and many names: time and memory, against holding all scores at full resolution.

    python benchmarks/big_pictures.py

A ZegCLIP on ViT-B/16 with random weights segments random pictures in windows of 512 pixels every 426: first as the
papers do (the picture is resized to a short side of 512 pixels, and scores go back to its own size), then in windows
of its full resolution. "direct" keeps the scores of all names for all pixels, as the official code does. Each run has
a process of its own; memory is what it needs at its peak, above model and picture.
"""

import statistics
import time
from itertools import product
from typing import Any

import torch
from measuring import ArgumentParser, added_memory, in_own_process, print_table, write_report
from real_size import build, name_embeds, pictures

from zegclip.processing.windows import WindowLogits, merge_masks, predict_windows, resize_maps

SIZES = ((1500, 2000), (3000, 4000))
WINDOW, STRIDE = 512, 426


def direct(windows: WindowLogits, target_size: tuple[int, int]) -> torch.Tensor:
    """Return the best name of each pixel, by way of all scores at full resolution."""
    scores = torch.zeros(windows.logits.shape[1], windows.height, windows.width)
    coverage = torch.zeros(windows.height, windows.width)
    for logits, (top, left, bottom, right) in zip(windows.logits, windows.boxes, strict=True):
        scores[:, top:bottom, left:right] += resize_maps(logits, bottom - top, right - left).sigmoid()
        coverage[top:bottom, left:right] += 1
    scores /= coverage
    if scores.shape[1:] != target_size:
        scores = resize_maps(scores, *target_size)
    return scores.argmax(dim=0)


@torch.inference_mode()
def run(size: tuple[int, int], names: int, full_resolution: bool, way: str, batch: int) -> dict[str, float]:
    """Segment one picture; return seconds in the model and after it, and MB."""
    model = build("ZegCLIP").eval()
    embeds = name_embeds(model, names)
    scale = 1 if full_resolution else WINDOW / min(size)
    picture = pictures(model, 1, *(round(side * scale) for side in size))
    model(pixel_values=picture[:, :, :64, :64], class_embeds=embeds)  # what is built once is not the picture's
    figures: dict[str, float] = {}

    def segment() -> None:
        start = time.perf_counter()
        windows = predict_windows(model, picture, embeds, WINDOW, STRIDE, batch)
        middle = time.perf_counter()
        if way == "direct":
            direct(windows, size)
        else:
            merge_masks(windows, size)
        figures.update(windows=len(windows.boxes), model_s=middle - start, merge_s=time.perf_counter() - middle)

    figures["peak_mb"] = added_memory(segment)
    return figures


COLUMNS = {
    "picture": "{picture}",
    "windows of": "{windows of}",
    "windows": "{windows:.0f}",
    "way": "{way}",
    "in the model, s": "{model_s:.1f}",
    "after it, s": "{merge_s:.1f}",
    "peak above the model, MB": "{peak_mb:,.0f}",
}


def main() -> None:
    """Parse the command line, measure, print the table and save it as JSON."""
    parser = ArgumentParser(__doc__, "big_pictures.json", repeats=1)
    parser.add_argument("--names", type=int, default=171)
    parser.add_argument("--window_batch_size", type=int, default=8)
    arguments = parser.parse_args()

    rows: list[dict[str, Any]] = []
    for size, full_resolution in product(SIZES, (False, True)):
        found: dict[str, list[dict[str, float]]] = {"ours": [], "direct": []}
        for _, way in product(range(arguments.repeats), found):
            words = (size, arguments.names, full_resolution, way, arguments.window_batch_size)
            found[way].append(in_own_process(run, *words))
        for way, runs in found.items():
            case = {
                "picture": f"{size[1]}x{size[0]}",
                "windows of": "the picture itself" if full_resolution else "the resized picture",
                "way": way,
            }
            rows.append(
                case | {name: statistics.median(run[name] for run in runs) for name in runs[0]} | {"runs": runs}
            )
    print_table(rows, COLUMNS)
    write_report(arguments.output, {"names": arguments.names, "rows": rows})


if __name__ == "__main__":
    main()
