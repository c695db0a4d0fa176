"""Every layout, written by hand as its tool would from the same five pictures, becomes the same canonical folder."""

import json

import pytest
from hand_made import CLASSES, DRAWN, LAYOUTS, LONG, RENAMED, masks_in, save_mask


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
