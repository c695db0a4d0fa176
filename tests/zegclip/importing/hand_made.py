"""Five pictures with class maps of rectangles, and every layout of them, written by hand as its tool would."""

import csv
import json
from typing import NamedTuple

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from zegclip.processing.benchmarks import read_class_lists

CLASSES = ["background", "cat", "dog"]
COLOURS = [(0, 0, 0), (250, 50, 50), (40, 60, 200)]
LONG = {"train": "train", "val": "validation"}
NAMES = "--classes", "names.txt"


class Drawn(NamedTuple):
    """A picture: its rectangles are `(class, left, top, right, bottom)`, later ones above."""

    name: str
    split: str
    size: tuple[int, int]
    boxes: list[tuple[int, int, int, int, int]]

    @property
    def ids(self):
        width, height = self.size
        ids = np.zeros((height, width), dtype=np.uint8)
        for class_id, left, top, right, bottom in self.boxes:
            ids[top:bottom, left:right] = class_id
        return ids

    def save_picture(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(len(self.name)).integers(0, 255, (*self.size[::-1], 3), dtype=np.uint8)
        Image.fromarray(values).save(path)


DRAWN = [
    Drawn("cat 1", "train", (40, 30), [(1, 2, 3, 30, 25), (2, 10, 8, 20, 20)]),
    Drawn("dög", "train", (25, 50), [(2, 0, 0, 25, 30), (1, 5, 5, 15, 45)]),
    Drawn("0007", "train", (33, 21), [(1, 1, 1, 9, 9)]),
    Drawn("a.b", "val", (16, 16), [(2, 4, 0, 12, 16), (1, 6, 6, 8, 10)]),
    Drawn("road_2", "val", (30, 30), [(1, 0, 20, 30, 30), (2, 0, 0, 9, 9)]),
]


def save_mask(values, path, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(path)


def coloured(ids, colours=COLOURS):
    return np.array(colours, dtype=np.uint8)[ids]


def masks_in(target):
    """The masks of a canonical folder by split and name, as bytes, which must have pictures."""
    masks, pictures = (
        {path.relative_to(target / kind).with_suffix("").as_posix(): path for path in (target / kind).rglob("*.*")}
        for kind in ("masks", "images")
    )
    assert pictures.keys() == masks.keys()
    return {name: path.read_bytes() for name, path in masks.items()}


def read_masks(target):
    """The masks of a canonical folder as arrays."""
    return {
        path.relative_to(target / "masks").as_posix().removesuffix(".png"): np.asarray(Image.open(path))
        for path in target.rglob("masks/**/*.png")
    }


def polygon(box):
    _, left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(box, size):
    _, left, top, right, bottom = box
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def uncompressed(box, size):
    flat = run_lengths(box, size).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": list(size[::-1]), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def compressed(box, size):
    code = coco_mask.encode(np.asfortranarray(run_lengths(box, size)))
    return {"size": list(size[::-1]), "counts": code["counts"].decode()}


def write_coco(path, drawn, outline, pattern="{}.jpg", categories=((3, "cat", "animal"), (7, "dog", "animal"))):
    """The smaller region first: the order of the file must not decide."""
    ids = {name: number for number, name, _ in categories}
    images, annotations = [], []
    for number, one in enumerate(drawn):
        width, height = one.size
        images.append({"id": number, "file_name": pattern.format(one.name), "width": width, "height": height})
        for box in sorted(one.boxes, key=lambda box: (box[3] - box[1]) * (box[4] - box[2])):
            region = outline(box, one.size)
            annotations.append({
                "id": len(annotations), "image_id": number, "category_id": ids[CLASSES[box[0]]],
                "segmentation": region, "iscrowd": int(isinstance(region, dict)), "area": 1, "bbox": [0, 0, 1, 1],
            })  # fmt: skip
    named = [{"id": number, "name": name, "supercategory": group} for number, name, group in categories]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))


def of(split):
    return [one for one in DRAWN if one.split == split]


def coco(outline):
    def build(folder):
        for split in LONG:
            write_coco(folder / "annotations" / f"instances_{split}2017.json", of(split), outline)
            for one in of(split):
                one.save_picture(folder / f"{split}2017" / f"{one.name}.jpg")

    return build


def coco_without_splits(folder):
    write_coco(folder / "result.json", DRAWN, lambda box, size: [polygon(box)], "images\\{}.jpg")
    for one in DRAWN:
        one.save_picture(folder / "images" / f"{one.name}.jpg")


def coco_of_roboflow(folder):
    categories = ((0, "pets", "none"), (1, "cat", "pets"), (2, "dog", "pets"))
    for split, name in {"train": "train", "val": "valid"}.items():
        path = folder / name / "_annotations.coco.json"
        write_coco(path, of(split), lambda box, size: [polygon(box)], categories=categories)
        for one in of(split):
            one.save_picture(folder / name / f"{one.name}.jpg")


def yolo(folder):
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    for one in DRAWN:
        one.save_picture(folder / "images" / one.split / f"{one.name}.jpg")
        lines = []
        for box in sorted(one.boxes, key=lambda box: (box[3] - box[1]) * (box[4] - box[2])):
            corners = np.array(polygon(box)).reshape(-1, 2) / one.size
            lines.append(" ".join(map(str, [box[0] - 1, *corners.ravel().round(6)])))
        path = folder / "labels" / one.split / f"{one.name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))


def yolo_of_roboflow(folder):
    yolo(folder)
    for name, split in {"train": "train", "valid": "val"}.items():
        (folder / name).mkdir()
        for kind in ("images", "labels"):
            (folder / kind / split).rename(folder / name / kind)
    (folder / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def write_labelmap(folder):
    rows = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(CLASSES, COLOURS)]
    (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n")


def write_lists(folder):
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split in LONG:
        names = "".join(f"{one.name}\n" for one in of(split))
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text(names)


def cvat(folder):
    for one in DRAWN:
        one.save_picture(folder / "JPEGImages" / f"{one.name}.jpg")
        save_mask(coloured(one.ids), folder / "SegmentationClass" / f"{one.name}.png")
        save_mask(coloured(one.ids), folder / "SegmentationObject" / f"{one.name}.png")
    write_labelmap(folder)


def cvat_with_splits(folder):
    cvat(folder)
    write_lists(folder)


def camvid(folder):
    for one in DRAWN:
        one.save_picture(folder / one.split / f"{one.name}.png")
        save_mask(coloured(one.ids), folder / f"{one.split}_labels" / f"{one.name}_L.png", "RGBA")
    with (folder / "class_dict.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", "r", "g", "b"], *([name, *rgb] for name, rgb in zip(CLASSES, COLOURS))])


def palettes_that_differ(folder):
    for one in DRAWN:
        one.save_picture(folder / "images" / one.split / f"{one.name}.jpg")
        used = list(dict.fromkeys([*one.ids.ravel().tolist()[::-1]]))
        indices = np.argsort(used + [i for i in range(3) if i not in used])[one.ids].astype(np.uint8)
        image = Image.fromarray(indices)
        image.putpalette([channel for class_id in used for channel in COLOURS[class_id]])
        path = folder / "masks" / one.split / f"{one.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (folder / "colours.json").write_text(json.dumps(dict(zip(CLASSES, map(list, COLOURS)))))


def hex_colours(folder):
    for one in DRAWN:
        one.save_picture(folder / "images" / one.split / f"{one.name}.jpg")
        save_mask(coloured(one.ids), folder / "masks" / one.split / f"{one.name}.png")
    rows = [{"title": name, "color": f"#{bytes(colour).hex()}"} for name, colour in zip(CLASSES, COLOURS)]
    (folder / "classes.json").write_text(json.dumps({"classes": rows}))


def masks_of_roboflow(folder):
    for split, name in {"train": "train", "val": "valid"}.items():
        for one in of(split):
            one.save_picture(folder / name / f"{one.name}.jpg")
            save_mask(one.ids, folder / name / f"{one.name}_mask.png")
        lines = [["Pixel Value", " Class"], *([number, f" {label}"] for number, label in enumerate(CLASSES))]
        with (folder / name / "_classes.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def folders(pictures, masks, *, suffix="", photo=".jpg", channels=1, names="classes.txt"):
    """A layout of two folders, with `{split}` in their paths where it has splits."""

    def build(folder):
        for one in DRAWN:
            one.save_picture(folder / pictures.format(split=one.split) / f"{one.name}{photo}")
            path = folder / masks.format(split=one.split) / f"{one.name}{suffix}.png"
            save_mask(one.ids if channels == 1 else np.stack([one.ids] * channels, axis=-1), path)
        (folder / names).write_text("\n".join(CLASSES))

    return build


def raw(folder):
    cvat(folder)
    for one in DRAWN:
        save_mask(one.ids, folder / "SegmentationClassRaw" / f"{one.name}.png")


def label_studio(folder):
    tasks = []
    for number, one in enumerate(DRAWN, start=1):
        one.save_picture(folder / "images" / f"{one.name}.jpg")
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{one.name}.jpg"}})
        for class_id in (1, 2):
            if (one.ids == class_id).any():
                name = f"task-{number}-annotation-{number + 9}-by-1-tag-{CLASSES[class_id]}-0.png"
                save_mask((one.ids == class_id) * np.uint8(255), folder / "masks" / name)
    (folder / "tasks.json").write_text(json.dumps(tasks))


def folder_per_class(folder):
    for one in DRAWN:
        one.save_picture(folder / "images" / one.split / f"{one.name}.jpg")
        for class_id in (1, 2):
            mask = Image.fromarray((one.ids == class_id) * np.uint8(255)).convert("1")
            path = folder / "masks" / one.split / CLASSES[class_id] / f"{one.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)


def suffix_per_class(folder):
    for one in DRAWN:
        one.save_picture(folder / "images" / one.split / f"{one.name}.jpg")
        for class_id in (1, 2):
            mask = (one.ids == class_id) * np.uint8(255)
            save_mask(mask, folder / "masks" / one.split / f"{one.name}_{CLASSES[class_id]}.png")


def arrays(save, suffix):
    def build(folder):
        for one in DRAWN:
            one.save_picture(folder / "images" / one.split / f"{one.name}.jpg")
            path = folder / "labels" / one.split / f"{one.name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, one.ids)
        (folder / "classes.txt").write_text("\n".join(CLASSES))

    return build


def voc(folder):
    values = np.array([0, 8, 12], dtype=np.uint8)
    for one in DRAWN:
        one.save_picture(folder / "VOC2012/JPEGImages" / f"{one.name}.jpg")
        image = Image.fromarray(values[one.ids])
        image.putpalette([17 * index % 256 for index in range(768)])
        path = folder / "VOC2012/SegmentationClass" / f"{one.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def ade20k(folder):
    values = np.array([1, 2, 4], dtype=np.uint8)
    for one in DRAWN:
        split = {"train": "training", "val": "validation"}[one.split]
        one.save_picture(folder / "ADEChallengeData2016/images" / split / f"{one.name}.jpg")
        save_mask(values[one.ids], folder / "ADEChallengeData2016/annotations" / split / f"{one.name}.png")


def cityscapes(folder):
    values = np.array([7, 8, 26], dtype=np.uint8)
    for one in DRAWN:
        place = f"{one.split}/bonn/{one.name}"
        one.save_picture(folder / f"leftImg8bit/{place}_leftImg8bit.png")
        save_mask(values[one.ids], folder / f"gtFine/{place}_gtFine_labelIds.png")
        save_mask(coloured(one.ids), folder / f"gtFine/{place}_gtFine_color.png")


def others_than(benchmark, *kept):
    names = ["background"] * (benchmark == "voc") + read_class_lists()[benchmark]["names"]
    return ["--ignore", *(name for name in names if name not in kept)]


LAYOUTS = {
    "canonical": (folders("images/{split}", "masks/{split}"), True, []),
    "split first": (folders("{split}/images", "{split}/masks"), True, []),
    "COCO, polygons": (coco(lambda box, size: [polygon(box)]), True, []),
    "COCO, run lengths": (coco(uncompressed), True, []),
    "COCO, compressed": (coco(compressed), True, []),
    "COCO, no splits": (coco_without_splits, False, []),
    "COCO, Roboflow": (coco_of_roboflow, True, []),
    "YOLO": (yolo, True, []),
    "YOLO, Roboflow": (yolo_of_roboflow, True, []),
    "CVAT, labelmap.txt": (cvat, False, []),
    "CVAT, labelmap.txt and lists": (cvat_with_splits, True, []),
    "CamVid, RGBA": (camvid, True, []),
    "palettes that differ": (palettes_that_differ, True, []),
    "JSON of colours": (hex_colours, True, []),
    "Roboflow, _classes.csv": (masks_of_roboflow, True, []),
    "three equal channels": (folders("images/{split}", "labels/{split}", channels=3), True, []),
    "annotations": (folders("images/{split}", "annotations/{split}"), True, []),
    "gt": (folders("imgs", "gt", suffix="_GT"), False, []),
    "_L": (folders("images", "labels", suffix="_L"), False, []),
    "beside, _mask": (folders("{split}", "{split}", suffix="_mask"), True, []),
    "beside, another format": (folders("all", "all"), False, []),
    "trainannot": (folders("{split}", "{split}annot", photo=".png", names="names.txt"), True, NAMES),
    "mmsegmentation": (folders("img_dir/{split}", "ann_dir/{split}", names="names.txt"), True, NAMES),
    "JPEGImages, SegmentationClass": (folders("JPEGImages", "SegmentationClass", names="class_names.txt"), False, []),
    "SegmentationClassRaw": (raw, False, []),
    "own folders": (folders("a", "b"), False, ["--pictures", "a", "--masks", "b"]),
    "Label Studio": (label_studio, False, []),
    "a folder per class": (folder_per_class, True, []),
    "a suffix per class": (suffix_per_class, True, []),
    ".npy": (arrays(np.save, ".npy"), True, []),
    ".mat": (arrays(lambda path, ids: scipy.io.savemat(path, {"GTcls": {"Segmentation": ids}}), ".mat"), True, []),
    "VOC": (voc, False, ["--format", "voc", *others_than("voc", "background", "cat", "dog")]),
    "ADE20K": (ade20k, True, ["--format", "ade20k", *others_than("ade20k", "wall", "building", "floor")]),
    "Cityscapes": (cityscapes, True, others_than("cityscapes", "road", "sidewalk", "car")),
}
RENAMED = {"ADE20K": ["wall", "building", "floor"], "Cityscapes": ["road", "sidewalk", "car"]}
