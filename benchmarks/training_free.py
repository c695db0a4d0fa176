"""
What segmenting without training costs, and what refinement is worth on the drawn world.

    python benchmarks/training_free.py cost
    python benchmarks/training_free.py outlines

The first needs no weights: a ViT-B/16 with random ones computes as much.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import added_memory, alternate, in_own_process, ratio, run_cases, spread
from tqdm import tqdm
from transformers import CLIPConfig, pipeline

import zegclip
from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.drawing.legend import arrange
from zegclip.drawing.overlay import class_panes
from zegclip.loading import load_model, load_processor
from zegclip.picture_world.dataset import scene_seeds
from zegclip.picture_world.drawing import draw_scene
from zegclip.plain_clip import training_free_fields
from zegclip.processing.merging import merge_masks
from zegclip.processing.metrics import class_counts, class_ious
from zegclip.processing.pipeline import TASK
from zegclip.processing.windows import WindowLogits, predict_windows, window_boxes
from zegclip.training.data import picture_world_split

SIZES = ((512, 512), (800, 1333))  # Height and width that a picture has been resized to.
WINDOW, STRIDE, AT_ONCE = 224, 112, 8
NUM_NAMES = (171, 3 * 171)
FEW_NAMES = 20
STRIP = Path(__file__).parents[1] / "docs" / "images" / "refinement.jpg"


@torch.inference_mode()
def cost(repeats: int = 5, threads: int = 2) -> dict[str, Any]:
    """NACLIP's patch logits against the bare vision tower, and what names and refinement add."""
    torch.set_num_threads(threads)
    clip = CLIPConfig(vision_config={"image_size": WINDOW, "patch_size": 16})
    model = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=clip, **training_free_fields())).eval()
    embeds = torch.nn.functional.normalize(torch.randn(NUM_NAMES[0], clip.projection_dim), dim=-1)
    steps = {}
    for height, width in SIZES:
        pictures = torch.randn(1, 3, height, width)
        boxes = window_boxes(height, width, WINDOW, STRIDE)

        def bare(pictures: torch.Tensor = pictures, boxes: list = boxes) -> None:
            for start in range(0, len(boxes), AT_ONCE):
                some = boxes[start : start + AT_ONCE]
                model.clip.vision_model(torch.cat([pictures[..., t:b, le:r] for t, le, b, r in some]))

        steps[f"{height}x{width}", "bare tower"] = bare
        steps[f"{height}x{width}", "NACLIP"] = partial(
            predict_windows, model, pictures, embeds, WINDOW, STRIDE, batch_size=AT_ONCE
        )
    times = alternate(steps, repeats, title="tower")
    towers = [
        {"picture": size, "step": step, **spread(seconds), "relative": ratio(seconds, times[size, "bare tower"])}
        for (size, step), seconds in times.items()
    ]
    names = []
    for height, width in SIZES:
        boxes = window_boxes(height, width, WINDOW, STRIDE)
        picture = torch.randn(3, height, width)
        for count in NUM_NAMES:
            logits = 10 * torch.randn(len(boxes), count, WINDOW // 16, WINDOW // 16)
            windows = WindowLogits(logits, boxes, height, width, "softmax")
            (seconds,) = alternate({"best name": partial(merge_masks, windows)}, repeats, title="names").values()
            row = {"picture": f"{height}x{width}", "names": count, **spread(seconds)}
            names.append(row | {"ns_per_pixel_and_name": 1e6 * row["median_ms"] / (count * height * width)})
        few = WindowLogits(logits[:, :FEW_NAMES], boxes, height, width, "softmax")
        refined = {"plain": partial(merge_masks, few), "refined": partial(merge_masks, few, picture=picture)}
        seconds = alternate(refined, 2, title="refinement")
        row = {"picture": f"{height}x{width}", "names": f"{FEW_NAMES}, refined", **spread(seconds["refined"])}
        names.append(row | {"maps_above_scores": in_own_process(memory_of_refinement, height, width)})
    return {"model": "ViT-B/16, random weights, float32", "windows": WINDOW, "towers": towers, "names": names}


def memory_of_refinement(height: int, width: int) -> float:
    """Return the peak above one copy of the scores, in maps of the picture's size."""
    boxes = window_boxes(height, width, WINDOW, STRIDE)
    logits = torch.randn(len(boxes), FEW_NAMES, WINDOW // 16, WINDOW // 16)
    picture = torch.randn(3, height // 2, width // 2)
    merge_masks(WindowLogits(logits[:1], boxes[:1], WINDOW, WINDOW, "softmax"), picture=picture)
    step = partial(merge_masks, WindowLogits(logits, boxes, height, width, "softmax"), picture=picture)
    return 1e6 * added_memory(step) / (4 * height * width) - FEW_NAMES


def before_outlines(ids: np.ndarray, width: int) -> np.ndarray:
    """Mark the pixels, `(height, width)` bool, up to `width` pixels before another class begins."""
    marked = np.zeros(ids.shape, dtype=bool)
    for step in range(1, width + 1):
        marked[:, :-step] |= ids[:, :-step] != ids[:, step:]
        marked[:-step] |= ids[:-step] != ids[step:]
    return marked


def outlines(pictures: int = 100, side: int = 384, shown: int = 3) -> dict[str, Any]:
    """The embedded model with and without refinement, on drawn scenes of four times the side that it sees."""
    model = load_model(zegclip.DEFAULT_MODEL)
    processor = load_processor(zegclip.DEFAULT_MODEL)
    segmenter = pipeline(TASK, model=model, processor=processor, output_type="class_map")
    split = picture_world_split("test")
    counts = {"as they come": np.zeros((3, len(split.names)), np.int64)}
    counts["refined"] = counts["as they come"].copy()
    edges = {title: np.zeros(2, np.int64) for title in counts}
    seconds = dict.fromkeys(counts, 0.0)
    strips = []
    for number in tqdm(scene_seeds("test")[:pictures], unit="picture"):
        scene = draw_scene(number, "test", size=side)
        truth = np.asarray(scene.mask).astype(np.int64)
        at_edge = before_outlines(truth, 8)
        maps = {"truth": truth}
        for title in counts:
            start = time.perf_counter()
            result = segmenter(scene.image, candidate_labels=list(split.names), refine=title == "refined")
            maps[title] = result["segmentation"]
            seconds[title] += time.perf_counter() - start
            tensors = torch.from_numpy(maps[title]), torch.from_numpy(truth)
            counts[title] += class_counts(*tensors, len(split.names), split.ignore_index).numpy()
            edges[title] += ((maps[title] == truth)[at_edge].sum(), at_edge.sum())
        if len(strips) < shown:
            present = np.unique(np.stack(list(maps.values()))).tolist()
            blank = ["" for _ in present]
            strips.append(class_panes(scene.image, maps, split, present, blank))
    arrange(strips, 1).save(STRIP, quality=90)
    rows = [
        {
            "masks": title,
            "pAcc": 100 * counts[title][0].sum() / counts[title][2].sum(),
            "mIoU": 100 * float(np.nanmean(class_ious(counts[title]))),
            "pAcc within 8 pixels of an outline": 100 * edges[title][0] / edges[title][1],
            "seconds per picture": seconds[title] / pictures,
        }
        for title in counts
    ]
    return {"split": "test", "pictures": pictures, "side": side, "names": len(split.names), "masks": rows}


if __name__ == "__main__":
    run_cases(__doc__, cost, outlines)
