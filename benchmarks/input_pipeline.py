"""
How many training samples a second come from picture files, and where the time goes.

    python benchmarks/input_pipeline.py

Draws JPEG pictures of the usual sizes of Pascal VOC and COCO, and about as large in bytes, with palette PNG masks, and
reads them as training does: decode, augment to 512x512, normalise, batches of 16 from a data loader. Prints samples a
second, the median over repeats, and milliseconds of each stage, profiled without workers. Other work on the machine
shows: look at the spread.
"""

import cProfile
import pstats
import statistics
import tempfile
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from datasets import Image as ImageFeature
from measuring import alternate, run_cases
from PIL import Image
from torch.utils.data import DataLoader

from zegclip import ZegClipImageProcessorPil
from zegclip.processing.augmentation import TrainingAugmentation
from zegclip.processing.benchmarks import benchmark_split
from zegclip.processing.datasets import load_folder
from zegclip.training.pictures import TrainingPictures
from zegclip.training.trainer import collate

BATCH_SIZE = 16
WORKERS = (0, 1, 2)
SIZES = {"VOC, 500x375": (375, 500), "COCO, 640x480": (480, 640)}
# Each stage is a function; what they leave is flips, copies and the loader itself.
STAGES = {
    "decode the picture": "load_rgb",
    "decode the mask": "load_class_ids",
    "map mask values to ids": "labels_of",
    "crop and category rule": "_draw_crop",
    "resize the picture": "resize",
    "distort colours": "distort_colours",
    "normalise": "preprocess",
    "pad": "fill_up",
    "map ids to training labels": "training_labels",
    "collate": "collate",
}


def noise(rng: np.random.Generator, height: int, width: int, cells: int, channels: int) -> np.ndarray:
    """Smooth noise with about `cells` bumps along the longer side, `(height, width, channels)` in 0..1."""
    coarse = rng.random((max(cells * height // width, 2), cells, channels), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def draw_pictures(folder: Path, count: int, height: int, width: int, *, objects: bool) -> None:
    """
    Draw pictures and masks.

    Args:
        folder: Is made.
        count: Of pictures.
        height: In pixels.
        width: In pixels.
        objects: Masks as VOC's, one to three objects of 20 classes on background 0 with a border of 255; otherwise as
            COCO-Stuff's, up to eight of 171 classes that fill the picture.
    """
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    palette = np.random.default_rng(0).integers(256, size=768).tolist()
    for number in range(count):
        rng = np.random.default_rng(number)
        if objects:
            ids = np.zeros((height, width), np.uint8)
            for class_id in rng.choice(np.arange(1, 21), rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])).tolist():
                centre = (int(rng.integers(width)), int(rng.integers(height)))
                axes = (int(rng.integers(width // 8, width // 2)), int(rng.integers(height // 8, height // 2)))
                cv2.ellipse(ids, centre, axes, float(rng.integers(180)), 0, 360, class_id, -1)
                cv2.ellipse(ids, centre, axes, float(rng.integers(180)), 0, 360, 255, 5)
        else:
            ids = rng.choice(171, 8, replace=False)[noise(rng, height, width, 4, 8).argmax(axis=2)].astype(np.uint8)
        # Regions of one colour, light and shade, texture, and the grain that makes up most of a photograph's bytes.
        colours = rng.integers(40, 215, (256, 3))[ids]
        shade = 80 * noise(rng, height, width, 6, 1) + 40 * noise(rng, height, width, 60, 3) - 60
        grain = rng.normal(0, 9, (height, width, 1))
        image = Image.fromarray((colours + shade + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / "images" / f"{number:05}.jpg", quality=95)
        mask = Image.fromarray(ids)
        mask.putpalette(palette)
        mask.save(folder / "masks" / f"{number:05}.png")


def training_pictures(folder: Path, benchmark: str) -> TrainingPictures:
    """Load a folder as `train.py` does, with the classes of a benchmark."""
    data = load_folder(folder)["train"]
    for column in ("image", "mask"):
        data = data.cast_column(column, ImageFeature(decode=False))
    return TrainingPictures(
        data, benchmark_split(benchmark), "inductive", TrainingAugmentation(), ZegClipImageProcessorPil()
    )


def samples_per_second(data: TrainingPictures, repeats: int) -> list[dict[str, Any]]:
    """Measure passes over the data with each number of workers, in turns."""
    passes = {}
    for workers in WORKERS:
        loader = DataLoader(data, BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate)
        passes[workers] = partial(deque, loader, maxlen=0)
    rows = []
    for workers, seconds in alternate(passes, repeats, title="passes").items():
        speeds = [len(data) / one for one in seconds]
        figures = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
        rows.append({"workers": workers, **figures})
    return rows


def stage_times(data: TrainingPictures) -> dict[str, float]:
    """Profile one pass without workers; milliseconds of each stage for each sample."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in DataLoader(data, BATCH_SIZE, collate_fn=collate):
        pass
    profile.disable()
    result = pstats.Stats(profile).get_stats_profile()
    # Functions of C are called <name> or <module.name>.
    seconds = {name.strip("<>").rpartition(".")[2]: times.cumtime for name, times in result.func_profiles.items()}
    times = {stage: 1000 * seconds[name] / len(data) for stage, name in STAGES.items()}
    times["everything else"] = 1000 * result.total_tt / len(data) - sum(times.values())
    return times


def input_pipeline(pictures: int = 192, repeats: int = 5) -> dict[str, Any]:
    """Measure both kinds of data sets, of so many pictures each."""
    speeds: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (height, width) in SIZES.items():
            like_voc = name.startswith("VOC")
            folder = Path(scratch) / name
            draw_pictures(folder, pictures, height, width, objects=like_voc)
            data = training_pictures(folder, "voc" if like_voc else "coco_stuff")
            kilobytes = statistics.mean(path.stat().st_size for path in folder.glob("images/*")) / 1000
            common = {"pictures": name, "kilobytes": kilobytes}
            speeds += [common | row for row in samples_per_second(data, repeats)]
            profiles = [stage_times(data) for _ in range(repeats)]
            medians = {stage: statistics.median(times[stage] for times in profiles) for stage in profiles[0]}
            total = sum(medians.values())
            stages += [
                {"pictures": name, "stage": stage, "ms": median, "share": median / total}
                for stage, median in medians.items()
            ]
    return {"pictures": pictures, "batch_size": BATCH_SIZE, "speeds": speeds, "stages": stages}


if __name__ == "__main__":
    run_cases(__doc__, input_pipeline)
