"""What `zegclip import` does where layouts leave a choice: overlaps, colours, splits, interruptions, bad files."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hand_made import (
    CLASSES,
    COLOURS,
    DRAWN,
    LAYOUTS,
    coloured,
    folders,
    polygon,
    read_masks,
    save_mask,
    write_coco,
    write_labelmap,
)
from PIL import Image

from zegclip.processing.datasets import load_pictures, read_sample


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def draw(folder, name, ids, split="", **mask):
    """A picture and its mask in two folders."""
    ids = np.asarray(ids, dtype=np.uint8)
    path = folder / "images" / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", ids.shape[1::-1], (90, 120, 30)).save(path)
    save_mask(ids, folder / "masks" / split / f"{name}.png", **mask)


def write_names(folder, names=CLASSES):
    path = folder / "classes.txt"
    path.write_text("\n".join(names))
    return path


def record_of(target):
    return json.loads((target / "import.json").read_text())


def refused(run, *words, says, **where):
    """One sentence, and nothing is written."""
    status, output = run(*words, **where)
    last = output.strip().splitlines()[-1]
    assert status == 1
    assert last.startswith("zegclip: ")
    for part in [says] if isinstance(says, str) else says:
        assert part in last
    return output


# Overlaps


@pytest.mark.parametrize("reverse", [False, True])
def test_the_larger_area_lies_below_and_of_equal_ones_the_earlier(source, target, run, reverse):
    """Whatever the file says of their areas."""
    boxes = {"equal": [(1, 0, 0, 6, 6), (2, 3, 3, 9, 9)], "larger": [(1, 0, 0, 9, 9), (2, 3, 3, 9, 9)]}
    images, annotations = [], []
    for name, regions in boxes.items():
        Image.new("RGB", (10, 10)).save(source / f"{name}.png")
        images.append({"id": name, "file_name": f"{name}.png", "width": 10, "height": 10})
        for box in regions[::-1] if reverse else regions:
            annotations.append({
                "id": len(annotations), "image_id": name, "category_id": box[0], "segmentation": [polygon(box)],
                "area": box[0], "iscrowd": 0,
            })  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (source / "annotations.json").write_text(json.dumps(content))
    assert run()[0] == 0
    masks = read_masks(target)
    assert masks["train/larger"][5, 5] == 2
    assert masks["train/equal"][4, 4] == (1 if reverse else 2)
    assert masks["train/equal"][0, 0] == 1
    assert masks["train/equal"][9, 9] == 0


def test_degenerate_outlines_are_not_boxes(source, target, run):
    """pycocotools would take four numbers for a box."""
    Image.new("RGB", (10, 10)).save(source / "a.png")
    write_coco(source / "a.json", [], None)
    content = json.loads((source / "a.json").read_text())
    content["images"] = [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}]
    content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 5, 5]], "bbox": [0, 0, 5, 5]},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 5, 0, 5, 5, 0, 5], [7, 7]]},
    ]
    (source / "a.json").write_text(json.dumps(content))
    status, output = run()
    assert status == 0
    assert read_masks(target)["train/a"].tolist() == [[2] * 5 + [0] * 5] * 5 + [[0] * 10] * 5
    assert "1 outlines" in output


@pytest.mark.parametrize("swap", [False, True])
def test_annotations_of_no_image_are_noticed_and_ids_may_be_text(source, target, run, swap):
    write_coco(source / "a.json", DRAWN, lambda box, size: [polygon(box)])
    for one in DRAWN:
        one.save_picture(source / f"{one.name}.jpg")
    content = json.loads((source / "a.json").read_text())
    entries, key = (content["images"], "id") if swap else (content["annotations"], "image_id")
    for entry in entries:
        entry[key] = str(entry[key])
    (source / "a.json").write_text(json.dumps(content))
    status, output = run()
    assert status == 0
    assert all(np.array_equal(read_masks(target)[f"train/{one.name}"], one.ids) for one in DRAWN)
    assert "annotations of" not in output
    assert "no outline" not in output
    first = [entry for entry in content["annotations"] if str(entry["image_id"]) == "0"]
    for entry in first:
        entry["image_id"] = 77
    (source / "a.json").write_text(json.dumps(content))
    status, output = run(target="other")
    assert status == 0
    assert f"{len(first)} annotations of a.json" in output
    assert "1 pictures have no outline" in output
    for entry in content["annotations"]:
        entry["image_id"] = 77
    (source / "a.json").write_text(json.dumps(content))
    refused(run, says=["a.json", "annotation"], target="third")


@pytest.mark.parametrize(
    ("outline", "says"),
    [
        ([[0, 0, 1e12, 0, 1e12, 1e12]], "far outside"),
        ([[0, 0, 5, 0, 5, None]], "cannot be read"),
        ([[0, 0, 5, 0, 5, 5, 1]], "pairs"),
        ([3, 4], "cannot be read"),
        ({"size": [10, 10], "counts": ""}, "run lengths"),
        ({"size": [10, 10], "counts": "0123"}, "run lengths"),
        ({"size": [10, 10], "counts": [3, 4]}, "run lengths"),
        ({"size": [10, 10], "counts": [120, -20]}, "run lengths"),
        ({"size": [9, 10], "counts": [90]}, "run lengths"),
        ({"counts": [100]}, "cannot be read"),
        ([], "box"),
    ],
)
def test_an_outline_that_cannot_be_painted_skips_its_picture(source, target, run, outline, says):
    """Some of these end pycocotools, or let it return what is in memory."""
    write_coco(source / "a.json", DRAWN[:2], lambda box, size: [polygon(box)])
    content = json.loads((source / "a.json").read_text())
    content["images"].append({"id": 9, "file_name": "bad.png", "width": 10, "height": 10})
    content["annotations"].append(
        {"id": 99, "image_id": 9, "category_id": 3, "segmentation": outline, "bbox": [0, 0, 4, 4]}
    )
    (source / "a.json").write_text(json.dumps(content))
    Image.new("RGB", (10, 10)).save(source / "bad.png")
    for one in DRAWN[:2]:
        one.save_picture(source / f"{one.name}.jpg")
    status, output = run()
    assert status == 1
    assert says in output
    (skipped,) = record_of(target)["skipped"]
    assert "bad.png" in skipped["file"]
    assert says in skipped["reason"]
    assert len(read_masks(target)) == 2


def test_outlines_in_the_frame_before_an_exif_turn_are_turned_with_their_picture(source, target, run):
    """Their size proves in which of the two frames they were drawn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:5, :5] = 255
    images = []
    for number, (name, size) in enumerate({"stored": (20, 10), "upright": (10, 20)}.items()):
        Image.fromarray(pixels).save(source / f"{name}.png", exif=exif)
        images.append({"id": number, "file_name": f"{name}.png", "width": size[0], "height": size[1]})
    boxes = [(1, 0, 0, 5, 5), (1, 5, 0, 10, 5)]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon(box)]}
        for number, box in enumerate(boxes)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (source / "a.json").write_text(json.dumps(content))
    status, output = run()
    assert status == 0
    assert "1 masks had the size" in output
    data, split = load_pictures(str(target))
    for row in data["train"]:
        picture, labels = read_sample(row, split)
        assert np.array_equal(labels == 1, np.asarray(picture)[..., 0] == 255)


# Colours


def test_a_pixel_near_a_listed_colour_is_that_and_others_are_ignored_and_counted(source, target, run):
    ids = DRAWN[0].ids
    pixels = coloured(ids).astype(int)
    pixels[0, 0] = (5, 5, 5)
    pixels[0, 1] = (128, 0, 128)
    pixels[0, 2] = (0, 255, 0)
    pixels[4, 4] = (245, 45, 60)
    DRAWN[0].save_picture(source / "images" / "a.png")
    save_mask(pixels.astype(np.uint8), source / "masks" / "a.png")
    write_labelmap(source)
    status, output = run()
    assert status == 0
    expected = ids.copy()
    expected[0, 1:3] = 255
    assert np.array_equal(read_masks(target)["train/a"], expected)
    assert record_of(target)["pixels"]["unlisted"] == 2
    assert f"{100 * 2 / ids.size:.2f} %" in output


@pytest.mark.parametrize("alpha", [255, 100, 0])
def test_a_mask_of_one_colour_is_cut_out(source, target, run, alpha):
    write_labelmap(source)
    draw(source, "a", np.eye(9))
    cut_out(np.eye(9, dtype=bool), COLOURS[1], alpha).save(source / "masks/a.png")
    assert run()[0] == 0
    assert np.array_equal(read_masks(target)["train/a"], np.eye(9) if alpha else np.zeros((9, 9)))


def test_colours_that_lie_close_together_keep_apart(source, target, run):
    ids = np.array([[0, 1, 2]])
    colours = [(0, 0, 0), (10, 0, 0), (0, 0, 10)]
    Image.new("RGB", (3, 1)).save(source / "a.jpg")
    pixels = coloured(ids, colours)
    save_mask(pixels, source / "a.png")
    (source / "colours.csv").write_text(
        "name,r,g,b\n" + "".join(f"c{i},{r},{g},{b}\n" for i, (r, g, b) in enumerate(colours))
    )
    assert run()[0] == 0
    assert read_masks(target)["train/a"].tolist() == [[0, 1, 2]]


def test_colours_without_names_are_listed_in_a_file_to_fill_in(source, target, run, tmp_path):
    for one in DRAWN:
        one.save_picture(source / "images" / f"{one.name}.jpg")
        save_mask(coloured(one.ids), source / "masks" / f"{one.name}.png")
    output = refused(run, says=["target_colours.csv", "--classes"])
    assert not target.exists()
    table = tmp_path / "target_colours.csv"
    header, *rows = table.read_text().splitlines()
    assert header == "name,r,g,b,share"
    assert len(rows) == 3
    total = sum(one.ids.size for one in DRAWN)
    names = dict(zip(COLOURS, ["", "cat", "dog"]))
    filled = [header]
    for row in rows:
        _, *colour, share = row.split(",")
        colour = tuple(map(int, colour))
        count = sum((one.ids == COLOURS.index(colour)).sum() for one in DRAWN)
        assert float(share) == pytest.approx(count / total, abs=1e-4)
        assert f"{100 * count / total:.2f} %" in output
        filled.append(",".join([names[colour], *map(str, colour), share]))
    refused(run, "--classes", table, says="name")
    table.write_text("\n".join(filled))
    refused(run, says="existed before")
    assert table.read_text() == "\n".join(filled)
    status, _ = run("--classes", table)
    assert status == 0
    order = [row.split(",")[0] for row in filled[1:] if not row.startswith(",")]
    assert (target / "classes.txt").read_text().split() == order
    for one in DRAWN:
        expected = np.array([255, order.index("cat"), order.index("dog")])[one.ids]
        assert np.array_equal(read_masks(target)[f"train/{one.name}"], expected)


def test_palettes_that_differ_without_names_are_colours_too(source, target, run):
    LAYOUTS["palettes that differ"][0](source)
    (source / "colours.json").unlink()
    write_names(source)
    refused(run, says="colour")
    assert not target.exists()


@pytest.mark.parametrize("kind", ["grey", "palette", "three channels"])
def test_ids_stay_ids_beside_a_table_of_colours(source, target, run, kind):
    """Even where their grey values are near black, which is listed."""
    for one in DRAWN:
        one.save_picture(source / "images" / f"{one.name}.jpg")
        path = source / "masks" / f"{one.name}.png"
        image = Image.fromarray(one.ids)
        if kind == "palette":
            image.putpalette([9, 9, 9, 200, 200, 200, 100, 200, 0])
        path.parent.mkdir(exist_ok=True)
        (image.convert("RGB") if kind == "three channels" else image).save(path)
    write_labelmap(source)
    assert run()[0] == 0
    for one in DRAWN:
        assert np.array_equal(read_masks(target)[f"train/{one.name}"], one.ids)


def test_a_listed_white_is_a_class_and_not_ignored(source, target, run):
    draw(source, "a", [[0, 255], [255, 0]])
    (source / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,255,255::\n")
    assert run()[0] == 0
    assert read_masks(target)["train/a"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("names", [["cat"], ["ground", "cat"]])
def test_black_and_white_masks_are_one_class(source, target, run, suffix, names):
    ids = np.zeros((32, 32), dtype=np.uint8)
    ids[8:24, 8:24] = 255
    draw(source, "a", ids)
    if suffix == ".jpg":
        (source / "masks" / "a.png").unlink()
        save_mask(ids, source / "masks" / "a.jpg")
    refused(run, says=["--classes", "one class"])
    status, _ = run("--classes", write_names(source, names))
    assert status == 0
    assert np.array_equal(read_masks(target)["train/a"], ids // 255)
    assert (target / "classes.txt").read_text().split() == (names if len(names) == 2 else ["background", "cat"])


SHAPES = {
    "grey": lambda shape: Image.fromarray(shape * np.uint8(255)),
    "bits": lambda shape: Image.fromarray(shape),
    "three channels": lambda shape: Image.fromarray(shape * np.uint8(255)).convert("RGB"),
    "opaque": lambda shape: Image.fromarray(shape * np.uint8(255)).convert("RGBA"),
    "white, cut out": lambda shape: cut_out(shape, (255, 255, 255)),
    "black, cut out": lambda shape: cut_out(shape, (0, 0, 0)),
    "red, cut out": lambda shape: cut_out(shape, (200, 0, 0)),
    "translucent": lambda shape: cut_out(shape, (255, 255, 255), 100),
    "black on transparent white": lambda shape: cut_out(shape, np.where(shape[..., None], 0, 255)),
    "grey and alpha": lambda shape: cut_out(shape, (255, 255, 255)).convert("LA"),
    "white first": lambda shape: with_palette(~shape, [(255, 255, 255), (0, 0, 0)]),
    "dark red in a palette": lambda shape: with_palette(shape, [(0, 0, 0), (90, 0, 0)]),
    "transparent in a palette": lambda shape: with_palette(shape, [(255, 255, 255), (254, 254, 254)], transparency=0),
    "16 bits, 65535": lambda shape: Image.fromarray(shape * np.uint16(65535)),
    "16 bits, 255": lambda shape: Image.fromarray(shape * np.uint16(255)),
    "16 bits, 1": lambda shape: Image.fromarray(shape * np.uint16(1)),
}


def cut_out(shape, colour, alpha=255):
    """A picture of one colour, or of any, whose transparency is the shape."""
    image = Image.fromarray(np.broadcast_to(np.array(colour, dtype=np.uint8), (*shape.shape, 3)).copy())
    image.putalpha(Image.fromarray(shape * np.uint8(alpha)))
    return image


def with_palette(ids, colours, transparency=None):
    file = io.BytesIO()
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(np.ravel(colours).tolist())
    image.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    return Image.open(file)


@pytest.mark.parametrize("share", [0.3, 0.02, 0.0])
@pytest.mark.parametrize("of_classes", [False, True], ids=["of one class", "for each class"])
def test_a_shape_is_the_same_however_it_is_stored(source, target, run, of_classes, share):
    """Also beside masks that store it in another way, and where nothing is drawn."""
    rng = np.random.default_rng(0)
    expected = {}
    for index, (kind, build) in enumerate(SHAPES.items()):
        if not of_classes and kind == "16 bits, 1":  # With 255 in others, it needs a choice.
            continue
        expected[f"train/{index}"] = shape = rng.random((20, 30)) < share
        draw(source, str(index), shape)
        build(shape).save(source / "masks" / f"{index}.png")
        if of_classes:
            (source / "masks/cat").mkdir(exist_ok=True)
            (source / "masks" / f"{index}.png").rename(source / "masks/cat" / f"{index}.png")
    if of_classes:  # by which the folders are known to be classes
        save_mask(np.zeros((20, 30), dtype=np.uint8), source / "masks/dog/0.png", "1")
    status, output = run(*(() if of_classes else ("--classes", write_names(source, ["cat"]))))
    assert status == 0, output
    masks = read_masks(target)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        name: shape.astype(int).tolist() for name, shape in expected.items()
    }


def test_transparent_masks_of_one_colour_are_one_class_and_of_two_are_not(source, target, run):
    names = "--classes", write_names(source, ["cat", "dog"])
    for name in ("a", "b"):
        draw(source, name, np.eye(9))
        cut_out(np.eye(9, dtype=bool), (200, 0, 0)).save(source / "masks" / f"{name}.png")
    assert run(*names)[0] == 0
    assert np.array_equal(read_masks(target)["train/b"], np.eye(9))
    cut_out(np.eye(9, dtype=bool), (0, 0, 200)).save(source / "masks/b.png")
    refused(run, *names, says="colour-coded", target="other")


@pytest.mark.parametrize("names", [["cat"], ["background", "cat"]])
def test_one_and_255_in_different_masks_need_a_choice(source, target, run, names):
    draw(source, "a", np.eye(9))
    draw(source, "b", 255 * np.eye(9))
    classes = "--classes", write_names(source, names)
    refused(run, *classes, says=["binary", "ids"])
    assert run(*classes, "--format", "binary")[0] == 0
    assert np.array_equal(read_masks(target)["train/b"], np.eye(9))
    draw(source, "c", np.eye(9) + 255 * np.eye(9, k=1))  # Proves that 255 is something else.
    assert run(*classes, target="other")[0] == 0
    assert load_pictures(str(target.with_name("other")))[1].names == ("background", "cat")
    assert read_masks(target.with_name("other"))["train/b"].max() == 255


def test_ids_need_names(source, target, run):
    draw(source, "a", [[0, 1, 7]])
    refused(run, says=["0 to 1 and 7", "--classes"])
    assert not target.exists()


def test_values_that_begin_with_one_are_noticed(source, target, run):
    draw(source, "a", [[0, 1, 3, 255]])
    status, output = run("--classes", write_names(source, ["wall", "cat", "dog"]))
    assert status == 0
    assert read_masks(target)["train/a"].tolist() == [[255, 0, 2, 255]]
    assert "0 is ignored" in output


def test_a_value_beyond_the_names_moves_no_class_if_the_first_is_the_background(source, target, run):
    """A name was forgotten, a pixel is wrong, or 0 is unlabelled and 1 the background."""
    draw(source, "a", [[0, 1, 3]])
    draw(source, "b", [[0, 1, 2]])
    status, output = run("--classes", write_names(source))
    assert status == 1
    assert "values 0 to 3" in output
    assert not target.exists()
    draw(source, "a", [[1, 2, 3]])  # Without any 0, they begin with 1.
    (source / "masks/b.png").unlink()
    (source / "images/b.png").unlink()
    assert run("--classes", write_names(source), target="other")[0] == 0
    assert read_masks(target.with_name("other"))["train/a"].tolist() == [[0, 1, 2]]


def test_a_value_without_a_class_skips_its_picture(source, target, run):
    write_names(source)
    draw(source, "a", [[0, 1, 2]])
    draw(source, "b", [[0, 1, 9]])
    status, output = run()
    assert status == 1
    assert "value 9" in output
    assert set(read_masks(target)) == {"train/a"}


@pytest.mark.parametrize("count", [255, 300])
def test_many_classes(source, target, run, count):
    """With more than 255, masks have 16 bits and 65535 is ignored."""
    values = np.array([[0, count - 1, 65535 if count > 255 else 255]], dtype=np.uint16)
    draw(source, "a", values)
    save_mask(values, source / "masks" / "a.png")
    names = {str(index): f"class {index}" for index in range(count)}
    (source / "id2label.json").write_text(json.dumps(names))
    assert run("--ignore", "class 0")[0] == 0 if count == 300 else run()[0] == 0
    mask = read_masks(target)["train/a"]
    assert mask.dtype == (np.uint16 if count == 300 else np.uint8)
    assert mask.tolist() == ([[65535, 298, 65535]] if count == 300 else [[0, 254, 255]])
    data, split = load_pictures(str(target))
    assert read_sample(data["train"][0], split)[1].tolist() == mask.tolist()


# Classes


def test_several_classes_are_ignored(source, target, run):
    LAYOUTS["COCO, polygons"][0](source)
    assert run("--ignore", "cat", "background")[0] == 0
    assert (target / "classes.txt").read_text() == "dog\n"
    for one in DRAWN:
        split = {"train": "train", "val": "validation"}[one.split]
        assert np.array_equal(read_masks(target)[f"{split}/{one.name}"], np.array([255, 255, 0])[one.ids])
    refused(run, "--ignore", "cats", says="did you mean 'cat'", target="other")
    refused(run, "--ignore", *CLASSES, says="ignored", target="other")


def test_a_border_around_a_single_class_is_ignored(source, target, run):
    draw(source, "a", [[0, 1, 255], [0, 0, 255]])
    assert run("--classes", write_names(source, ["cat"]))[0] == 0
    assert read_masks(target)["train/a"].tolist() == [[0, 1, 255], [0, 0, 255]]
    assert load_pictures(str(target))[1].names == ("background", "cat")


def test_colours_of_lossless_masks_stay_apart_beside_others(source, run, tmp_path):
    close = [(128, 0, 0), (128, 20, 0)]
    draw(source, "a", np.zeros((50, 50)))
    save_mask(coloured(np.eye(50, dtype=np.uint8), close), source / "masks/a.png")
    draw(source, "b", np.zeros((100, 100)))
    (source / "masks/b.png").unlink()
    noise = np.random.default_rng(0).integers(0, 12, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise + np.array([120, 0, 0], dtype=np.uint8)).save(source / "masks/b.jpg")
    assert run()[0] == 1
    rows = (tmp_path / "target_colours.csv").read_text().splitlines()[1:]
    listed = {tuple(map(int, row.split(",")[1:4])) for row in rows}
    assert {*close} <= listed
    assert len(listed) < 10


def test_colours_that_compression_has_changed_are_listed_once(source, run, tmp_path):
    for index, one in enumerate(DRAWN):
        draw(source, str(index), one.ids)
        mask = Image.fromarray(coloured(one.ids)).resize((200, 200), Image.Resampling.NEAREST)
        Image.new("RGB", mask.size).save(source / "images" / f"{index}.png")
        (source / "masks" / f"{index}.png").unlink()
        mask.save(source / "masks" / f"{index}.jpg", quality=85)
    assert run()[0] == 1
    rows = (tmp_path / "target_colours.csv").read_text().splitlines()[1:]
    found = np.array([row.split(",")[1:] for row in rows], dtype=np.float64)
    frequent = found[found[:, 3] > 0.05, :3]
    assert len(frequent) == len(COLOURS)
    assert all(np.linalg.norm(frequent - colour, axis=1).min() < 10 for colour in COLOURS)
    assert len(found) < 30


def write_empty_coco(source, names):
    """A picture without outlines."""
    categories = [(number, name, "all") for number, name in enumerate(names)]
    write_coco(source / "a.json", [], None, categories=categories)
    content = json.loads((source / "a.json").read_text())
    content["images"] = [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}]
    (source / "a.json").write_text(json.dumps(content))
    Image.new("RGB", (10, 10)).save(source / "a.png")


@pytest.mark.parametrize("names", [["cat/kitten", "dog"], ["# cat", "dog"], ["1: cat", "2: dog"]])
def test_names_that_a_text_file_would_change_are_kept(source, target, run, names):
    write_empty_coco(source, names)
    assert run("--ignore", "background")[0] == 0
    assert load_pictures(str(target))[1].names == tuple(names)


@pytest.mark.parametrize("names", [["cat", " cat"], ["", "dog"], ["\ud800", "dog"]])
def test_names_that_are_none_are_refused(source, target, run, names):
    write_empty_coco(source, names)
    refused(run, says="lass")
    assert not target.exists()


# Splits


def draw_frames(source, videos=6, frames=5):
    write_names(source)
    for video in range(videos):
        for frame in range(frames):
            draw(source, f"v{video}_{frame}", [[0, 1, 2]])


def test_a_validation_split_is_the_same_for_the_same_seed(source, target, run, tmp_path):
    draw_frames(source)
    chosen = []
    for number, seed in enumerate((0, 0, 1)):
        assert run("--validation", "0.1", "--seed", seed, target=f"{number}")[0] == 0
        names = {name for name in read_masks(tmp_path / f"{number}") if name.startswith("validation/")}
        assert len(names) == 3
        chosen.append(names)
    assert chosen[0] == chosen[1] != chosen[2]


def test_groups_stay_together(source, target, run):
    draw_frames(source)
    assert run("--validation", "0.34", "--group-by", r"^(v\d+)_")[0] == 0
    splits = {}
    for name in read_masks(target):
        split, _, stem = name.partition("/")
        splits.setdefault(stem.split("_")[0], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert sum(found == {"validation"} for found in splits.values()) == 2


def test_an_even_split_takes_its_share_of_every_folder(source, target, run):
    write_names(source)
    for folder in ("day", "night"):
        for number in range(20):
            draw(source, f"{folder}_{number}", [[0, 1]], split=folder)
    assert run("--validation", "0.2")[0] == 0
    chosen = [name for name in read_masks(target) if name.startswith("validation/")]
    assert len(chosen) == 8
    assert sum("day" in name for name in chosen) == 4


def test_a_folder_beside_known_splits_is_a_split(source, target, run):
    folders("images/{split}", "masks/{split}")(source)
    for kind in ("images", "masks"):
        (source / kind / "val").rename(source / kind / "night")
    assert run()[0] == 0
    assert {name.split("/")[0] for name in read_masks(target)} == {"train", "night"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--validation", "0.5"], "validation split already"),
        (["--group-by", "x"], "--validation"),
        (["--validation", "0.5", "--group-by", "("], "regular expression"),
        (["--validation", "1"], "leaves nothing"),
        (["--format", "coco"], "COCO"),
        (["--format", "yolo"], "YAML"),
        (["--masks", "nowhere"], "--masks"),
        (["--classes", "nowhere.txt"], "nowhere.txt"),
        (["--ignore", "bird"], "bird"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(source, target, run, words, says):
    folders("images/{split}", "masks/{split}")(source)
    refused(run, *words, says=says)
    assert not target.exists()


# Sources that could be read in two ways, or not at all


def test_two_formats_at_once_need_a_choice(source, target, run):
    LAYOUTS["COCO, no splits"][0](source)
    for one in DRAWN:
        save_mask(np.zeros_like(one.ids), source / "masks" / f"{one.name}.png")
    write_names(source, ["nothing", "else"])
    refused(run, says=["coco and masks", "--format"])
    assert not target.exists()
    assert run("--format", "coco")[0] == 0
    assert np.array_equal(read_masks(target)["train/0007"], DRAWN[2].ids)


def test_names_files_that_differ_need_a_choice(source, target, run):
    LAYOUTS["Roboflow, _classes.csv"][0](source)
    (source / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, a\n1, b\n2, c\n")
    refused(run, says="--classes")
    assert not target.exists()


CONTRADICTING = {
    "values": ("classes.txt", "bird\ncat\nsky\n", "id2label.json", '{"0": "sky", "1": "cat", "2": "bird"}', 2),
    "colours": ("class_dict.csv", "name,r,g,b\na,0,0,0\nb,9,99,9\n", "colours.json", '{"a": [9, 99, 9]}', 1),
}


@pytest.mark.parametrize("kind", CONTRADICTING)
def test_names_files_that_contradict_each_other_need_a_choice(source, target, run, kind):
    first, names, second, others, most = CONTRADICTING[kind]
    ids = np.array([[0, 1, most]], dtype=np.uint8)
    draw(source, "a", ids)
    if kind == "colours":
        save_mask(coloured(ids, [(0, 0, 0), (9, 99, 9)]), source / "masks/a.png")
    (source / first).write_text(names)
    (source / second).write_text(others)
    refused(run, says=[first, second, "--classes"])
    assert not target.exists()
    assert run("--classes", source / first)[0] == 0
    assert np.array_equal(read_masks(target)["train/a"], ids)


def test_names_files_that_agree_need_no_choice(source, target, run):
    draw(source, "a", [[0, 1, 2]])
    write_names(source)
    (source / "id2label.json").write_text('{"0": "Background", "1": ["cat", "kitten"], "2": "dog", "7": "bird"}')
    (source / "labels.txt").write_bytes(b"\xff\xfe\x00")
    write_labelmap(source)
    assert run()[0] == 0
    assert read_masks(target)["train/a"].tolist() == [[0, 1, 2]]


def test_masks_of_the_same_names_in_two_folders_need_a_choice(source, target, run):
    draw(source, "a", [[0, 1]])
    save_mask(np.array([[1, 0]], dtype=np.uint8), source / "labels" / "a.png")
    write_names(source)
    refused(run, says="--masks")
    assert run("--masks", "labels")[0] == 0
    assert read_masks(target)["train/a"].tolist() == [[1, 0]]


def test_folders_that_are_no_source(source, target, run, tmp_path):
    refused(run, says="no such folder", source="nowhere")
    refused(run, says="empty")
    (source / "notes.txt").write_text("x")
    refused(run, says="--pictures")
    Image.new("RGB", (4, 4)).save(source / "a.png")
    refused(run, says="no masks")
    refused(run, says="beside each other", target="source/inside")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_missing_package_is_named(source, target, run, monkeypatch):
    LAYOUTS["COCO, no splits"][0](source)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    refused(run, says=["pycocotools", "zegclip[import]"])
    assert not target.exists()


# Bad files


def test_what_is_skipped_is_listed_with_its_reason(source, target, run):
    folders("images", "masks")(source)
    for name in ("cut", "lone", "size", "empty", "no picture", "twice"):
        draw(source, name, np.zeros((30, 30)))
    cut = source / "images" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (source / "masks" / "lone.png").unlink()
    draw(source, "size", np.zeros((30, 30)))
    save_mask(np.zeros((9, 9), dtype=np.uint8), source / "masks" / "size.png")
    (source / "masks" / "empty.png").write_bytes(b"")
    (source / "images" / "no picture.png").write_bytes(b"x" * 99)
    Image.new("RGB", (30, 30)).save(source / "images" / "twice.jpg")
    status, output = run()
    assert status == 1
    skipped = {os.path.basename(entry["file"]): entry["reason"] for entry in record_of(target)["skipped"]}
    names = {"cut.png", "lone.png", "size.png", "empty.png", "no picture.png", "twice.png", "twice.jpg"}
    assert set(skipped) == names
    for name, reason in skipped.items():
        assert f"{name}: {reason}" in output
    assert len(read_masks(target)) == 5
    assert not list(target.rglob(".zegclip-*"))
    assert run()[0] == 1


def test_if_every_picture_is_skipped_the_report_says_why(source, target, run):
    write_names(source)
    draw(source, "a", [[0, 9]])
    status, output = run()
    assert status == 1
    assert "value 9" in output
    assert len(record_of(target)["skipped"]) == 1


# The target


def test_a_record_of_something_else_is_left_alone(source, target, run):
    draw(source, "a", np.eye(9))
    target.mkdir()
    for name in ("import.json", "id2label.json"):
        (target / name).write_text('{"mine": 1}')
    refused(run, "--classes", write_names(source), says=str(target))
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "import.json": '{"mine": 1}', "id2label.json": '{"mine": 1}',
    }  # fmt: skip


def test_an_import_without_pictures_is_not_in_the_way(source, target, run):
    draw(source, "a", 5 * np.eye(9))
    assert run("--classes", write_names(source))[0] == 1
    assert run("--classes", write_names(source, list("abcdef")))[0] == 0
    assert np.array_equal(read_masks(target)["train/a"], 5 * np.eye(9))


def test_pictures_stay_when_the_source_is_deleted(source, target, run):
    folders("images", "masks")(source)
    status, output = run()
    assert status == 0
    assert "5 pictures are hard links" in output
    assert all(path.stat().st_nlink == 2 for path in (target / "images").rglob("*.jpg"))
    shutil.rmtree(source)
    data, split = load_pictures(str(target))
    assert len([read_sample(row, split) for row in data["train"]]) == 5


def test_copies_are_files_of_their_own(source, target, run):
    folders("images", "masks")(source)
    assert run("--copy")[0] == 0
    assert all(path.stat().st_nlink == 1 for path in (target / "images").rglob("*.jpg"))


def test_a_link_in_the_source_is_followed(source, target, run, tmp_path):
    folders("images", "masks")(source)
    (source / "images").rename(tmp_path / "elsewhere")
    (source / "images").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (source / "images" / path.name).symlink_to(path)
    assert run()[0] == 0
    assert not any(path.is_symlink() for path in (target / "images").rglob("*"))


def test_a_target_that_holds_something_else_is_refused(source, target, run, tmp_path):
    folders("images", "masks")(source)
    assert run()[0] == 0
    refused(run, "--ignore", "cat", says=["another import", "options"])
    shutil.copytree(source, tmp_path / "second")
    refused(run, says=["another import", str(source)], source="second")
    draw(source, "new", [[0, 1]])
    refused(run, says=["another import", "changed"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("x")
    refused(run, says="exists already", target="full")


def test_a_finished_import_is_not_done_again(source, target, run):
    folders("images", "masks")(source)
    assert run()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in target.rglob("masks/**/*.png")}
    status, output = run()
    assert status == 0
    assert "5 were done before" in output
    assert {path: path.stat().st_mtime_ns for path in target.rglob("masks/**/*.png")} == before


def test_a_killed_import_goes_on(source, target, run, tmp_path):
    for number in range(60):
        draw(source, f"{number:03}", np.full((40, 40), number % 3))
    write_names(source)
    words = [sys.executable, "-m", "zegclip", "import", source, target, "--workers", "2"]
    seen = set()
    for attempt in range(20):
        process = subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = target / ".import.jsonl"
        start = time.monotonic()
        while process.poll() is None and time.monotonic() - start < 60:
            if journal.is_file() and len(journal.read_bytes().split(b"\n")) > 8 * (attempt + 1):
                process.send_signal((signal.SIGKILL, signal.SIGTERM)[attempt % 2])
                break
            time.sleep(0.002)
        process.wait()
        done = {path: path.stat().st_mtime_ns for path in target.rglob("masks/**/*.png")}
        if journal.is_file():
            whole = journal.read_bytes().split(b"\n")[:-1]
            seen |= {json.loads(line)[0] for line in whole}
            journal.write_bytes(b"\n".join([*whole, b'["cut o']))
        finished = {target / "masks" / f"{name}.png": done[target / "masks" / f"{name}.png"] for name in seen}
        if attempt == 1:
            break
    assert seen, "no kill has hit the import"
    status, output = run()
    assert status == 0
    assert f"{len(seen)} were done before" in output
    assert all(path.stat().st_mtime_ns == time_before for path, time_before in finished.items())
    masks = read_masks(target)
    assert len(masks) == 60
    assert all((masks[f"train/{number:03}"] == number % 3).all() for number in range(60))
    assert sum(record_of(target)["pixels"].values()) == 60 * 1600
    names = {path.name for path in target.rglob("*")}
    assert not [name for name in names if name.startswith(".")]


def test_a_category_without_outlines_stays_a_class(source, target, run):
    """COCO's "person" is its own supercategory; only the project of Roboflow, of which others are kinds, goes."""
    categories = [(1, "person", "person"), (3, "cat", None), (4, "dog", "pets"), (5, "pets", "none"), (6, "None", "x")]
    write_coco(source / "a.json", DRAWN, lambda box, size: [polygon(box)], categories=categories)
    for one in DRAWN:
        one.save_picture(source / f"{one.name}.jpg")
    status, output = run()
    assert status == 0
    assert (target / "classes.txt").read_text().split() == ["background", "person", "cat", "dog", "None"]
    assert "'pets'" in output
