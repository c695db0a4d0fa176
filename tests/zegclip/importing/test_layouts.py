"""Every layout, written by hand as its tool would from the same five pictures, becomes the same canonical folder."""

import json
import shutil

import numpy as np
import pytest
from hand_made import (
    CLASSES,
    DRAWN,
    LAYOUTS,
    LONG,
    RENAMED,
    masks_in,
    polygon,
    read_masks,
    save_mask,
    write_coco,
    yolo,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_same_folder(layout, tmp_path, run):
    build, has_splits, options = LAYOUTS[layout]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    build(source)
    options = [source / option if option == "names.txt" else option for option in options]
    status, output = run(*options)
    assert status == 0, output
    expected = {}
    for one in DRAWN:
        save_mask(one.ids, tmp_path / "expected.png")
        split = LONG[one.split] if has_splits else "train"
        expected[f"{split}/{one.name}"] = (tmp_path / "expected.png").read_bytes()
    found = {name.replace("/bonn/", "/"): content for name, content in masks_in(target).items()}
    assert found == expected
    assert (target / "classes.txt").read_text() == "".join(f"{name}\n" for name in RENAMED.get(layout, CLASSES))
    record = json.loads((target / "import.json").read_text())
    assert record["finished"]
    assert record["skipped"] == []
    assert sum(record["splits"].values()) == 5
    assert (target / "check" / "contact_sheet.png").is_file()
    for picture in (target / "images").rglob("*.*"):
        assert not picture.is_symlink()
        assert picture.read_bytes()


# Those of benchmarks say how their files are called.
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("VOC", "ADE20K", "Cityscapes")])
def test_names_may_differ_in_case(tmp_path, run, layout):
    """As between cameras, tools and operating systems."""
    build, has_splits, words = LAYOUTS[layout]
    source = tmp_path / "source"
    source.mkdir()
    build(source)
    pictures = list(source.rglob("*.jpg"))
    for path in pictures:
        path.rename(path.with_name(f"{path.stem.upper()}.JPG"))
    words = [str(source / word) if word == "names.txt" else word for word in words]
    assert run(*words)[0] == 0
    expected = {
        f"{LONG[one.split] if has_splits else 'train'}/{one.name.upper() if pictures else one.name}": one.ids.tolist()
        for one in DRAWN
    }
    assert {name: mask.tolist() for name, mask in read_masks(tmp_path / "target").items()} == expected


@pytest.mark.parametrize("layout", ["COCO, no splits", "Label Studio"])
def test_label_studio_replaces_spaces_in_names(tmp_path, run, layout):
    source = tmp_path / "source"
    source.mkdir()
    LAYOUTS[layout][0](source)
    [path] = source.glob("*.json")
    path.write_text(path.read_text().replace("cat 1", "cat_1"))
    assert run()[0] == 0
    assert "train/cat 1" in read_masks(tmp_path / "target")


def draw_pairs(source, pictures, masks, ids=(1, 2)):
    """Pictures and masks at any paths; the masks in turn are of one class."""
    for path in pictures:
        DRAWN[0].save_picture(source / path)
    for index, path in enumerate(masks):
        save_mask(np.full((30, 40), ids[index % len(ids)], dtype=np.uint8), source / path)
    (source / "classes.txt").write_text("\n".join(CLASSES))


@pytest.mark.parametrize(
    ("pictures", "masks", "expected"),
    [
        # The mask of the same name, and not the one of another picture of its split.
        (["images/train/a.jpg", "images/val/A.jpg"], ["masks/train/A.png", "masks/val/a.png"], {"train/a": 1}),
        (["images/a b.jpg", "images/a_b.jpg"], ["masks/a_b.png", "masks/a b.png"], {"train/a_b": 1, "train/a b": 2}),
        (["images/a b.jpg"], ["masks/a_b.png"], {"train/a b": 1}),
        (["images/d\u00f6g.jpg"], ["masks/do\u0308g.png"], {"train/d\u00f6g": 1}),
    ],
)
def test_the_nearest_name_counts(tmp_path, run, pictures, masks, expected):
    draw_pairs(tmp_path / "source", pictures, masks)
    assert run()[0] == 0
    found = read_masks(tmp_path / "target")
    assert {name: int(found[name][0, 0]) for name in expected} == expected


def test_a_mask_of_another_picture_is_nobodys(tmp_path, run):
    draw_pairs(tmp_path / "source", ["images/a b.jpg", "images/a_b.jpg"], ["masks/a_b.png"])
    assert run()[0] == 1
    assert read_masks(tmp_path / "target").keys() == {"train/a_b"}


def test_a_mask_of_a_missing_picture_is_nobodys(tmp_path, run):
    draw_pairs(tmp_path / "source", ["images/a_1.jpg", "images/b.jpg"], ["masks/a_1_2.png", "masks/b.png"])
    status, output = run()
    assert status == 1
    assert "1 masks have no picture" in output
    assert read_masks(tmp_path / "target").keys() == {"train/b"}


@pytest.mark.parametrize("suffix", ["_mask", "_GT"])
def test_a_mask_of_a_missing_picture_is_nobodys_with_a_suffix(tmp_path, run, suffix):
    masks = [f"masks/{name}{suffix}.png" for name in ("a_1", "a_1_2", "b")]
    draw_pairs(tmp_path / "source", ["images/a_1.jpg", "images/b.jpg"], masks)
    status, output = run()
    assert status == 0
    assert "1 masks have no picture" in output
    found = read_masks(tmp_path / "target")
    assert {name: int(mask[0, 0]) for name, mask in found.items()} == {"train/a_1": 1, "train/b": 1}
    assert (tmp_path / "target/classes.txt").read_text().split() == CLASSES


@pytest.mark.parametrize("pattern", ["masks/{}_{}.png", "masks/{}_mask_{}.png", "masks/{1}/{0}.png"])
def test_numbers_are_no_classes_unless_asked(tmp_path, run, pattern):
    """They may be single objects."""
    names = [("a", 0), ("a", 1), ("b", 0)]
    masks = [pattern.format(*name) for name in names]
    draw_pairs(tmp_path / "source", ["images/a.jpg", "images/b.jpg"], masks, ids=(1,))
    (tmp_path / "source/classes.txt").unlink()
    status, output = run()
    assert status == 1
    assert "--format class-masks" in output.splitlines()[-1]
    assert not (tmp_path / "target").exists()
    assert run("--format", "class-masks")[0] == 0
    assert len((tmp_path / "target/classes.txt").read_text().split()) == 3


VIDEOS = [f"images/video1/{index}.jpg" for index in (1, 2)]


@pytest.mark.parametrize(
    ("pictures", "masks", "kept", "lost"),
    [
        # Of a deleted picture, beside pictures of the same name in another folder or split.
        ([*VIDEOS, "images/video2/3.jpg"], ["masks/video1/1.png", "masks/video1/3.png"], {"train/video1/1"}, 1),
        (["train/images/a.jpg", "val/images/b.jpg"], ["train/masks/a.png", "train/masks/b.png"], {"train/a"}, 1),
        (["images/train/1.jpg", "images/test/2.jpg"], ["masks/train/1.png", "masks/val/2.png"], {"train/1"}, 1),
        # Where one side has no folder or split, or a whole folder has another name.
        (VIDEOS, ["masks/1.png", "masks/2.png"], {"train/1", "train/2"}, 0),
        (["images/val/a.jpg", "images/train/b.jpg"], ["masks/a.png", "masks/b.png"], {"validation/a", "train/b"}, 0),
        ([*VIDEOS, "images/b/3.jpg"], ["masks/video1/1.png", "masks/b_new/3.png"], {"train/video1/1", "train/b/3"}, 0),
        # Folders that differ in case are no classes.
        ([*VIDEOS, "images/b/3.jpg"], ["masks/Video1/1.png", "masks/B/3.png"], {"train/video1/1", "train/b/3"}, 0),
    ],
)
def test_a_mask_is_no_label_of_another_folder_s_picture(tmp_path, run, pictures, masks, kept, lost):
    draw_pairs(tmp_path / "source", pictures, masks, ids=(1,))
    status, output = run()
    assert status == (len(kept) < len(pictures))
    assert ("1 masks have no picture" in output) == (lost == 1)
    assert output.count("there is no mask for this picture") == len(pictures) - len(kept)
    found = read_masks(tmp_path / "target")
    assert found.keys() == kept
    assert all((mask == 1).all() for mask in found.values())


def test_labels_of_yolo_belong_to_the_nearest_name(tmp_path, run):
    source = tmp_path / "source"
    yolo(source)
    DRAWN[0].save_picture(source / "images/train/cat_1.jpg")
    (source / "labels/train/cat_1.txt").write_text("1 0 0 1 0 1 1 0 1\n")
    (source / "labels/train/cat 1.txt").unlink()
    (source / "labels/train/do\u0308g.txt").write_bytes((source / "labels/train/d\u00f6g.txt").read_bytes())
    (source / "labels/train/d\u00f6g.txt").unlink()
    assert run()[0] == 0
    masks = read_masks(tmp_path / "target")
    assert not masks["train/cat 1"].any()
    assert (masks["train/cat_1"] == 2).all()
    assert np.array_equal(masks["train/d\u00f6g"], DRAWN[1].ids)


def test_labels_of_yolo_that_fit_two_pictures_are_refused(tmp_path, run):
    source = tmp_path / "source"
    yolo(source)
    DRAWN[0].save_picture(source / "images/train/CAT 1.jpg")
    (source / "labels/train/cat 1.txt").rename(source / "labels/train/Cat 1.txt")
    status, output = run()
    assert status == 1
    assert "Cat 1.txt" in output
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("prefix", ["autosplit_", ""])
def test_lists_of_yolo_tell_pictures_of_one_name_apart(tmp_path, run, prefix):
    source = tmp_path / "source"
    for folder in ("video1", "video2", "video3"):
        DRAWN[0].save_picture(source / "images" / folder / "0001.jpg")
        (source / "labels" / folder).mkdir(parents=True)
        (source / "labels" / folder / "0001.txt").write_text("1 0 0 1 0 1 1 0 1\n")
    for folder, split in (("video1", "train"), ("video2", "val")):
        (source / f"{prefix}{split}.txt").write_text(f"./images/{folder}/0001.jpg\n./images/video4/0001.jpg\n")
    lists = [f"train: {prefix}train.txt", f"val: {prefix}val.txt", f"test: {prefix}val.txt"]
    (source / "data.yaml").write_text("\n".join([*lists, "names: [cat, dog]"]))
    status, output = run()
    assert status == 0
    assert "1 pictures are in none of the lists" in output
    assert read_masks(tmp_path / "target").keys() == {"train/video1/0001", "validation/video2/0001"}
    shutil.rmtree(tmp_path / "target")
    with (source / f"{prefix}val.txt").open("a") as file:
        file.write("/elsewhere/video1/0001.jpg\n")
    status, output = run()
    assert status == 0
    assert "1 pictures, such as images/video1/0001.jpg, are in the lists of several splits" in output
    assert read_masks(tmp_path / "target").keys() == {"train/video1/0001", "validation/video2/0001"}


def test_lists_of_yolo_may_be_relative_to_their_folder(tmp_path, run):
    source = tmp_path / "source"
    for split in ("train", "val"):
        DRAWN[0].save_picture(source / split / "images" / "1.jpg")
        (source / split / "labels").mkdir()
        (source / split / "labels" / "1.txt").write_text("1 0 0 1 0 1 1 0 1\n")
        (source / split / f"{split}.txt").write_text("./images/1.jpg\n")
    (source / "data.yaml").write_text("train: train/train.txt\nval: val/val.txt\nnames: [cat, dog]\n")
    assert run()[0] == 0
    assert read_masks(tmp_path / "target").keys() == {"train/1", "validation/1"}


def test_of_yolo_s_folders_the_innermost_counts(tmp_path, run):
    source = tmp_path / "source"
    yolo(source)
    (source / "data.yaml").write_text("train: images\nval: images/val\nnames: [cat, dog]\n")
    assert run()[0] == 0
    assert read_masks(tmp_path / "target").keys() == {f"{LONG[one.split]}/{one.name}" for one in DRAWN}


def test_annotations_of_coco_say_the_split_whatever_the_folder_is_called(tmp_path, run):
    source = tmp_path / "source"
    for split in ("train", "val"):
        drawn = [one for one in DRAWN if one.split == split]
        write_coco(source / f"{split}.json", drawn, lambda box, size: [polygon(box)])
        for one in drawn:
            one.save_picture(source / "images" / "train" / f"{one.name}.jpg")
    status, output = run()
    assert status == 0
    assert "in a folder of another split" in output
    assert read_masks(tmp_path / "target").keys() == {f"{LONG[one.split]}/{one.name}" for one in DRAWN}


def test_a_file_of_coco_over_several_splits_is_none_of_them(tmp_path, run):
    source = tmp_path / "source"
    write_coco(source / "my_test.json", DRAWN, lambda box, size: [polygon(box)])
    for one in DRAWN:
        one.save_picture(source / "images" / one.split / f"{one.name}.jpg")
    assert run()[0] == 0
    assert read_masks(tmp_path / "target").keys() == {f"{LONG[one.split]}/{one.name}" for one in DRAWN}
    # Two files that name different splits say so, as LVIS's do.
    shutil.rmtree(tmp_path / "target")
    (source / "my_test.json").unlink()
    for split, drawn in (("train", DRAWN[:1]), ("val", DRAWN[1:])):
        write_coco(source / f"some_{split}.json", drawn, lambda box, size: [polygon(box)])
    assert run()[0] == 0
    masks = read_masks(tmp_path / "target").keys()
    assert masks == {f"train/{DRAWN[0].name}", *(f"validation/{one.name}" for one in DRAWN[1:])}


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [
        ("{}/a.coco.json", ("first", "second")),
        ("{}/a.coco.json", ("train", "val")),
        ("{}.json", ("train", "val")),
        ("annotations/instances_{}.json", ("train", "val")),
    ],
)
def test_outlines_of_coco_are_not_those_of_another_split(tmp_path, run, pattern, folders):
    """`b` was lost from the first folder, and lies in the second, whose file has it too."""
    source = tmp_path / "source"
    a, b = DRAWN[0]._replace(name="a"), DRAWN[2]._replace(name="b")
    write_coco(source / pattern.format(folders[0]), [a, DRAWN[0]._replace(name="b")], lambda box, size: [polygon(box)])
    write_coco(source / pattern.format(folders[1]), [b], lambda box, size: [polygon(box)])
    a.save_picture(source / folders[0] / "a.jpg")
    b.save_picture(source / folders[1] / "b.jpg")
    status, output = run()
    assert status == 1
    assert output.count("there is no such picture") == 1
    masks = {name.rpartition("/")[2]: mask for name, mask in read_masks(tmp_path / "target").items()}
    assert masks.keys() == {"a", "b"}
    assert np.array_equal(masks["b"], b.ids)


def test_a_table_of_pictures_and_masks_needs_no_import(tmp_path, run):
    source = tmp_path / "source" / "one"
    DRAWN[0].save_picture(source / "image.png")
    save_mask(DRAWN[0].ids, source / "mask.png")
    row = {"file_name": "one/image.png", "mask_file_name": "one/mask.png"}
    (source.parent / "metadata.jsonl").write_text(json.dumps(row))
    status, output = run()
    assert status == 1
    assert "needs no import" in output


def test_outlines_of_labelme_are_refused_by_name(tmp_path, run):
    DRAWN[0].save_picture(tmp_path / "source/a.jpg")
    (tmp_path / "source/a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": [{"label": "cat"}]}))
    status, output = run()
    assert status == 1
    assert "labelme" in output


def test_a_folder_that_coco_names_is_the_pictures(tmp_path, run):
    source = tmp_path / "source"
    write_coco(source / "a.json", DRAWN[:1], lambda box, size: [polygon(box)], pattern="first/{}.jpg")
    DRAWN[0].save_picture(source / "first/CAT 1.JPG")
    DRAWN[0].save_picture(source / "second/cat 1.jpg")
    assert run()[0] == 0
    assert list(read_masks(tmp_path / "target")) == ["train/CAT 1"]
    (source / "first/CAT 1.JPG").unlink()
    DRAWN[1].save_picture(source / "first/other.jpg")
    assert run(target="other")[0] == 1
    assert not (tmp_path / "other/masks").exists()
