"""Every layout, written by hand as its tool would from the same five pictures, becomes the same canonical folder."""

import json

import pytest
from hand_made import CLASSES, DRAWN, LAYOUTS, LONG, RENAMED, masks_in, read_masks, save_mask


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
