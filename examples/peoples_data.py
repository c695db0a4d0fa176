"""
Draw pictures of the picture world, and write them as the data of people look: in the format of an annotation tool.

    python examples/peoples_data.py outputs/peoples_data --as coco
    python examples/peoples_data.py outputs/peoples_data --as colours

coco: `images/{train,val}/*.jpg` and `annotations/instances_{train,val}.json`, each thing as polygons. They overlap,
the smaller one above. Things of a few pixels, which polygons would miss, are run lengths.
colours: JPEG pictures and colour masks with `labelmap.txt`, as CVAT writes them.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as run_lengths
from tqdm import tqdm

from zegclip.exporting.export import export_data
from zegclip.files import check_new_folder, new_folder
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.dataset import Split, draw_example, scene_seeds
from zegclip.processing.datasets import load_pictures

POOLS: dict[str, Split] = {"train": "train", "val": "tuning"}
SMALLEST_POLYGON = 16
"""Pixels; a smaller thing is written as run lengths."""


def draw(split: str, count: int, images: Path) -> list[tuple[str, np.ndarray]]:
    """Draw and save pictures; return their file names, and their class maps, `(height, width)` uint8."""
    images.mkdir(parents=True)
    drawn = []
    for number, seed in enumerate(tqdm(scene_seeds(POOLS[split])[:count], desc=split, unit="picture")):
        row = draw_example(POOLS[split], seed)
        name = f"{split}_{number:04d}.jpg"
        row["image"].save(images / name, quality=95, subsampling=0)
        drawn.append((name, np.asarray(row["mask"])))
    return drawn


def find_things(ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the class of each connected region of a class map, and its pixels with all holes filled, uint8."""
    things = []
    for index in np.unique(ids).tolist():
        count, regions = cv2.connectedComponents((ids == index).astype(np.uint8), connectivity=4)
        for region in range(1, count):
            inside = (regions == region).astype(np.uint8)
            outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            things.append((index, cv2.drawContours(inside, outlines, -1, color=1, thickness=cv2.FILLED)))
    return things


def outline(inside: np.ndarray) -> list[list[float]]:
    """Return the polygons around a region, x and y in turn."""
    # Of pixels twice as large, the outline runs a quarter of a pixel inside the edges, so that the polygon holds the
    # centre of each pixel of the region and of no other.
    doubled = inside.repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(points.reshape(-1) / 2 + 0.25).tolist() for points in outlines]


def write_coco(folder: Path, counts: dict[str, int]) -> None:
    """Write `images` and `annotations`."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)]
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, ids in draw(split, count, folder / "images" / split):
            height, width = ids.shape
            images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
            for index, inside in find_things(ids):
                encoded = run_lengths.encode(np.asfortranarray(inside))
                area = int(run_lengths.area(encoded))
                shape: Any = outline(inside)
                if area < SMALLEST_POLYGON:
                    shape = {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": index + 1,
                        "segmentation": shape,
                        "area": area,
                        "bbox": run_lengths.toBbox(encoded).tolist(),
                        "iscrowd": int(area < SMALLEST_POLYGON),
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_colours(folder: Path, counts: dict[str, int]) -> None:
    """Write `labelmap.txt`, `JPEGImages`, `SegmentationClass` and what belongs to them."""
    with tempfile.TemporaryDirectory() as place:
        for split, count in counts.items():
            masks = Path(place, "masks", split)
            masks.mkdir(parents=True)
            for name, ids in draw(split, count, Path(place, "images", split)):
                cv2.imwrite(str(masks / Path(name).with_suffix(".png")), ids)
        Path(place, "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
        export_data(*load_pictures(place), folder, "colours")


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description="Draw pictures and write them in the format of an annotation tool.")
    parser.add_argument("folder", type=Path, help="new folder to write")
    parser.add_argument("--as", dest="kind", choices=("coco", "colours"), required=True, help="the format")
    parser.add_argument("--num-train", type=int, default=400, help="pictures for training (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=60, help="pictures for validation (default: %(default)s)")
    arguments = parser.parse_args()
    counts = {"train": arguments.num_train, "val": arguments.num_val}
    try:
        check_new_folder(arguments.folder)
        if arguments.kind == "colours":
            write_colours(arguments.folder, counts)
            return
        with new_folder(arguments.folder) as folder:
            write_coco(folder, counts)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
