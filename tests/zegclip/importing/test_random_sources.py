"""Random small data sets in every kind of format: imported rightly, whatever their names."""

import json
import os
import traceback
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml
from hand_made import coloured, compressed, polygon, read_masks, save_mask, uncompressed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

from zegclip.errors import explain
from zegclip.importing.listing import list_source
from zegclip.importing.recognise import read_source
from zegclip.importing.write import describe_import, write_source
from zegclip.processing.class_split import read_class_names

set_hypothesis_home_dir(os.environ["HF_HOME"])
NUMBERS = count()
LETTERS = st.characters(exclude_characters="/\0\\", exclude_categories=["Cs", "Cc", "Zl", "Zp"])
ODD_NAMES = st.sampled_from(
    ["train", "a_mask", "a", "a_b", "a b", "é", "猫", "-", "%s", "x.y", "0", "#", "{}", "labels", "mask_L"]
)
FILE_NAMES = st.one_of(ODD_NAMES, st.text(LETTERS, min_size=1, max_size=6)).filter(
    lambda name: not name.startswith((".", " ")) and not name.endswith((" ", ".")) and len(os.fsencode(name)) < 60
)
ODD_CLASSES = [
    "cat",
    "dog",
    "traffic light",
    "tv/monitor",
    "# x",
    "{",
    "1: a",
    "éclair",
    "猫",
    "a,b",
    "a:b",
    "no",
    "'",
]
CLASS_NAMES = st.one_of(st.sampled_from(ODD_CLASSES), st.text(LETTERS, min_size=1, max_size=6)).map(str.strip)
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def data_sets(draw):
    """Class names, and for each picture its size and boxes of these classes, numbered from 1."""
    usual = CLASS_NAMES.filter(lambda name: name.strip("_ ") and name.strip("_ ").lower() != "background")
    names = draw(st.lists(usual, min_size=1, max_size=4, unique=True))
    files = draw(st.lists(FILE_NAMES, min_size=1, max_size=4, unique_by=str.lower))
    pictures = {}
    for file in files:
        width, height = draw(st.integers(1, 14)), draw(st.integers(1, 14))
        boxes = []
        for _ in range(draw(st.integers(0, 4))):
            left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
            boxes.append((draw(st.integers(1, len(names))), left, top, right, bottom))
        pictures[file] = (width, height), boxes
    return names, pictures


def paint(size, boxes):
    """Larger areas below, of equal ones the earlier: the rule in its plainest form."""
    ids = np.zeros(size[::-1], dtype=np.uint8)
    for class_id, left, top, right, bottom in sorted(boxes, key=lambda box: -(box[3] - box[1]) * (box[4] - box[2])):
        ids[top:bottom, left:right] = class_id
    return ids


def write_coco(folder, names, pictures, data):
    outline = data.draw(st.sampled_from([lambda box, size: [polygon(box)], uncompressed, compressed]))
    images, annotations = [], []
    for number, (file, (size, boxes)) in enumerate(pictures.items()):
        images.append({"id": number, "file_name": f"{file}.jpg", "width": size[0], "height": size[1]})
        annotations += [
            {"id": 0, "image_id": number, "category_id": 2 * box[0], "segmentation": outline(box, size)}
            for box in boxes
        ]
    categories = [{"id": 2 * number, "name": name} for number, name in enumerate(names, start=1)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(text)


def write_yolo(folder, names, pictures, data):
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": names}), encoding="utf-8")
    (folder / "labels").mkdir()
    for file, (size, boxes) in pictures.items():
        rows = [[box[0] - 1, *(np.array(polygon(box)).reshape(-1, 2) / size).ravel().round(6)] for box in boxes]
        (folder / "labels" / f"{file}.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))


def write_ids(folder, names, pictures, data):
    kind = data.draw(st.sampled_from(["grey", "channels", "palette", ".npy", ".mat"]))
    suffix = data.draw(st.sampled_from(["", "_L", "_mask", "_GT"]))
    for file, (size, boxes) in pictures.items():
        ids, path = paint(size, boxes), folder / "masks" / f"{file}{suffix}{kind if kind[0] == '.' else '.png'}"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(ids)
        if kind == "palette":
            image.putpalette(list(range(90, 105)))
        if kind == ".npy":
            np.save(path, ids)
        elif kind == ".mat":
            scipy.io.savemat(path, {"x": ids})
        else:
            (image.convert("RGB") if kind == "channels" else image).save(path)
    write_json_names(folder, ["background", *names])


def write_json_names(folder, names):
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))


def write_colours(folder, names, pictures, data):
    colours = data.draw(st.lists(COLOURS, min_size=len(names) + 1, max_size=len(names) + 1, unique=True))
    for file, (size, boxes) in pictures.items():
        save_mask(coloured(paint(size, boxes), colours), folder / "masks" / f"{file}.png")
    (folder / "classes.json").write_text(json.dumps(dict(zip(["background", *names], colours))))


def write_palettes(folder, names, pictures, data):
    """Each mask numbers the colours in another way."""
    colours = data.draw(st.lists(COLOURS, min_size=len(names) + 1, max_size=len(names) + 1, unique=True))
    for file, (size, boxes) in pictures.items():
        order = data.draw(st.permutations(range(len(colours))))
        image = Image.fromarray(np.argsort(order)[paint(size, boxes)].astype(np.uint8))
        image.putpalette([channel for index in order for channel in colours[index]])
        path = folder / "masks" / f"{file}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    (folder / "colours.json").write_text(json.dumps(dict(zip(["background", *names], colours))))


def write_class_masks(folder, names, pictures, data):
    """A folder for each class; file systems do not know every name. What lies above is cut out below."""
    for file, (size, boxes) in pictures.items():
        for class_id in range(1, len(names) + 1):
            path = folder / "masks" / f"{chr(96 + class_id)}" / f"{file}.png"
            save_mask((paint(size, boxes) == class_id) * np.uint8(255), path)
    names[:] = [chr(97 + index) for index in range(len(names))]


WRITERS = [write_coco, write_yolo, write_ids, write_colours, write_palettes, write_class_masks]


def check(tmp_path, case, data):
    names, pictures = case
    writer = data.draw(st.sampled_from(WRITERS))
    root = tmp_path / f"{next(NUMBERS)}"
    source, target = root / "source", root / "target"
    (source / "images").mkdir(parents=True)
    for file, (size, _) in pictures.items():
        Image.new("RGB", size, (1, 2, 3)).save(source / "images" / f"{file}.jpg")
    writer(source, names, pictures, data)
    try:
        listing = list_source(source)
        # A folder of one class could also be a folder of pictures.
        format = "class-masks" if writer is write_class_masks and len(names) == 1 else None
        found = read_source(listing, format, None, None, 0)
        outcome = write_source(found, target, describe_import(listing, {}, None), [], False, 0)
    except Exception as error:
        pytest.fail(f"{writer.__name__}: {explain(error) or traceback.format_exc()}")
    path = next(Path(target, name) for name in ("id2label.json", "classes.txt") if Path(target, name).is_file())
    read, values = read_class_names(path)
    assert values == list(range(len(names) + 1))
    assert read == ["background", *names]
    masks = read_masks(target)
    assert len(masks) + len({skipped.file for skipped in outcome.skipped}) == len(pictures), outcome.skipped
    assert outcome.skipped == []
    for file, (size, boxes) in pictures.items():
        assert np.array_equal(masks[f"train/{file}"], paint(size, boxes)), writer.__name__


def run_many(tmp_path, examples, fixed):
    @settings(
        max_examples=examples, derandomize=fixed, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(data_sets(), st.data())
    def property_of(case, data):
        check(tmp_path, case, data)

    property_of()


def test_few_random_sources(tmp_path):
    run_many(tmp_path, 30, fixed=True)


@pytest.mark.slow
def test_many_random_sources(tmp_path):
    run_many(tmp_path, 400, fixed=False)
