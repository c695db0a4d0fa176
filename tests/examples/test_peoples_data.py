"""`examples/peoples_data.py` writes drawn pictures so that the tools' own libraries read the drawn masks from them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.dataset import draw_example, scene_seeds

pytestmark = pytest.mark.thorough

SCRIPT = Path(__file__).parents[2] / "examples" / "peoples_data.py"
POOLS = {"train": "train", "val": "tuning"}
COUNTS = {"train": 6, "val": 2}


def write(folder, kind):
    words = [folder, "--as", kind, "--num-train", COUNTS["train"], "--num-val", COUNTS["val"]]
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


def drawn():
    """Split, name, picture and class map of all pictures."""
    for split, count in COUNTS.items():
        for number, seed in enumerate(scene_seeds(POOLS[split])[:count]):
            row = draw_example(POOLS[split], seed)
            yield split, f"{split}_{number:04d}", np.asarray(row["image"], dtype=int), np.asarray(row["mask"])


@pytest.mark.parametrize("kind", ["coco", "colours"])
@pytest.mark.slow
def test_pictures_and_masks_are_those_that_were_drawn(tmp_path, kind):
    folder = tmp_path / "data"
    done = write(folder, kind)
    assert done.returncode == 0, done.stderr
    for split, name, image, mask in drawn():
        place = folder / "images" / split if kind == "coco" else folder / "JPEGImages"
        assert abs(np.asarray(Image.open(place / f"{name}.jpg")).astype(int) - image).mean() < 10
        read = read_coco(folder, split, name) if kind == "coco" else read_colours(folder, split, name)
        assert (read == mask).all()
    assert write(folder, kind).returncode == 1  # the folder exists


def read_coco(folder, split, name):
    coco = COCO(str(folder / "annotations" / f"instances_{split}.json"))
    [entry] = [entry for entry in coco.imgs.values() if entry["file_name"] == f"{name}.jpg"]
    ids = np.full((entry["height"], entry["width"]), 255)
    # The larger one lies below.
    for annotation in sorted(coco.loadAnns(coco.getAnnIds(entry["id"])), key=lambda one: -one["area"]):
        inside = coco.annToMask(annotation) == 1
        assert inside.sum() == annotation["area"]
        ids[inside] = CLASS_NAMES.index(coco.cats[annotation["category_id"]]["name"])
    assert {isinstance(one["segmentation"], list) for one in coco.anns.values()} >= {True}
    return ids


def read_colours(folder, split, name):
    assert name in (folder / "ImageSets" / "Segmentation" / f"{split.replace('val', 'validation')}.txt").read_text()
    pixels = np.asarray(Image.open(folder / "SegmentationClass" / f"{name}.png")).astype(int)
    ids = np.full(pixels.shape[:2], 255)
    for line in (folder / "labelmap.txt").read_text().splitlines()[1:]:
        label, colour, *_ = line.split(":")
        if label != "background":
            ids[(pixels == np.array(colour.split(","), dtype=int)).all(axis=-1)] = CLASS_NAMES.index(label)
    return ids
