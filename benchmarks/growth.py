"""
How time and memory grow with names, pixels, pictures and windows.

    python benchmarks/growth.py

A ZegCLIP on ViT-B/16 with random weights, class embeddings given, up to the best name of each pixel. Sizes of one kind
take turns; each one's memory is measured in a process of its own, above the model. Printed are times, memory and the
exponent: the slope of a line through the logarithms, 1 where twice the size takes twice the time.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    TIMES,
    ArgumentParser,
    added_memory,
    alternate,
    exponent,
    in_own_process,
    print_table,
    spread,
    write_report,
)
from real_size import SIDE, build, name_embeds, pictures

from zegclip import ZegClipForSemanticSegmentation
from zegclip.processing.windows import WindowLogits, merge_masks, predict_windows

USUAL = {"names": 20, "pixels": SIDE**2, "pictures": 1, "windows": 1}
SIZES = {
    "names": (5, 20, 80, 320, 1000, 2000),
    "pixels": (224**2, 384**2, 512**2, 768**2, 1024**2),
    "pictures": (1, 2, 4, 8),
    "windows": (1, 2, 4, 8, 16),
}


def prepare(model: ZegClipForSemanticSegmentation, kind: str, size: int) -> Callable[[], Any]:
    """Return a step that segments random pictures, all but one size as usual."""
    sizes = USUAL | {kind: size}
    embeds = name_embeds(model, sizes["names"])
    side = math.isqrt(sizes["pixels"])
    if kind == "windows":
        wide = pictures(model, 1, side, side * size)
        return lambda: merge_masks(predict_windows(model, wide, embeds, side, side))
    batch = pictures(model, sizes["pictures"], side, side)

    def segment() -> None:
        for logits in model(pixel_values=batch, class_embeds=embeds).logits:
            merge_masks(WindowLogits(logits[None], [(0, 0, side, side)], side, side))

    return segment


@torch.inference_mode()
def memory_of_first_step(kind: str, size: int) -> float:
    """MB that a first step adds at its peak."""
    model = build("ZegCLIP").eval()
    step = prepare(model, kind, size)
    model(pixel_values=pictures(model, 1, 64, 64), class_embeds=name_embeds(model, 5))
    return added_memory(step)


COLUMNS = {"of": "{of}", "size": "{size:,}", **TIMES, "peak, MB": "{peak_mb:.0f}"}
EXPONENTS = {
    "of": "{of}",
    "from": "{from:,}",
    "to": "{to:,}",
    "exponent of time": "{time:.2f}",
    "of memory": "{memory:.2f}",
}


@torch.inference_mode()
def main() -> None:
    """Parse the command line, measure, print the tables and save them as JSON."""
    arguments = ArgumentParser(__doc__, "growth.json", repeats=3).parse_args()
    model = build("ZegCLIP").eval()
    rows, exponents = [], []
    for kind, sizes in SIZES.items():
        memory = [in_own_process(memory_of_first_step, kind, size) for size in sizes]
        times = alternate({size: prepare(model, kind, size) for size in sizes}, arguments.repeats, title=kind)
        medians = [spread(times[size])["median_ms"] for size in sizes]
        for size, peak in zip(sizes, memory, strict=True):
            rows.append({"of": kind, "size": size, **spread(times[size]), "peak_mb": peak})
        growth = {"time": exponent(sizes, medians), "memory": exponent(sizes, memory)}
        exponents.append({"of": kind, "from": sizes[0], "to": sizes[-1], **growth})
    print_table(rows, COLUMNS)
    print_table(exponents, EXPONENTS)
    write_report(arguments.output, {"rows": rows, "exponents": exponents})


if __name__ == "__main__":
    main()
