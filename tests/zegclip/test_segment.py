import json

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from zegclip.processing.image_reading import load_class_ids
from zegclip.segment import (
    find_pictures,
    find_unknown_words,
    load_segmenter,
    name_results,
    segment_pictures,
    summarise,
    write_results,
)

LABELS = ["cat", "tree", "b", "umbrella"]


def noise(height=40, width=90, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(["one.png", "two.jpg"]):
        noise(seed=seed).save(folder / name)
    return folder


def test_results_are_those_of_the_pipeline(model_folder, pictures, tmp_path):
    segmenter = load_segmenter(model_folder, "cpu")
    paths = find_pictures([pictures])
    outcome = segment_pictures(segmenter, name_results(paths), LABELS, tmp_path / "results", "name")
    assert outcome.failures == []
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(
        f"{stem}{end}" for stem in ("one", "two") for end in ("_overlay.png", "_mask.png", ".json")
    )
    usual = pipeline("zero-shot-image-segmentation", model=str(model_folder), device="cpu")
    for path in paths:
        expected = usual(str(path), candidate_labels=LABELS)
        ids = load_class_ids(tmp_path / "results" / f"{path.stem}_mask.png")
        record = json.loads((tmp_path / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
        assert len(np.unique(ids)) > 1
        assert record == {"image": str(path), "model": "name", "labels": outcome.results[path]}
        for index, (row, result) in enumerate(zip(record["labels"], expected, strict=True)):
            mask = np.asarray(result["mask"]) == 255
            np.testing.assert_array_equal(ids == index, mask)
            assert row["label"] == result["label"]
            assert row["share"] == pytest.approx(mask.mean(), abs=1e-6)
            assert row["score"] == pytest.approx(result["score"], abs=2e-6)


def test_settings_reach_the_pipeline(model_folder, pictures, tmp_path):
    segmenter = load_segmenter(model_folder, "cpu")
    paths = {pictures / "one.png": "one"}
    segment_pictures(segmenter, paths, LABELS, tmp_path / "none", "name", threshold=1.0)
    assert (load_class_ids(tmp_path / "none" / "one_mask.png") == 255).all()
    segment_pictures(segmenter, paths, LABELS, tmp_path / "usual", "name")
    segment_pictures(segmenter, paths, LABELS, tmp_path / "windows", "name", window_size=16)
    usual, windows = (load_class_ids(tmp_path / name / "one_mask.png") for name in ("usual", "windows"))
    assert (usual != windows).any()


def test_pictures_are_found_in_folders_once(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "notes.txt", ".hidden.png", "e.json"):
        (tmp_path / name).write_bytes(b"not looked at")
    (tmp_path / "deeper.png").mkdir()
    found = find_pictures([tmp_path / "c.webp", str(tmp_path), tmp_path / "missing.xyz", tmp_path / "." / "a.jpeg"])
    assert [path.name for path in found] == ["c.webp", "a.jpeg", "b.PNG", "missing.xyz"]


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="no picture in this folder") as error:
        find_pictures([tmp_path])
    assert str(tmp_path) in str(error.value)


def test_equal_stems_get_numbers(tmp_path):
    paths = [tmp_path / name for name in ("cat.png", "cat.jpg", "x/cat.png", "cat_2.png", "Cat.gif", "dog.png")]
    assert list(name_results(paths).values()) == ["cat", "cat_2", "cat_3", "cat_2_2", "Cat_4", "dog"]


@pytest.mark.parametrize(
    ("label", "known"),
    [("tree", True), ("Red Tree", True), ("red-tree", True), ("zebra", False), ("red zebra", False), ("猫", False)],
)
def test_unknown_words(label, known):
    assert find_unknown_words([label], ["red", "tree"]) == ([] if known else [label])
    assert find_unknown_words([label], None) == []


def test_summary():
    ids = np.array([[0, 0, 0, 2], [-1, -1, 2, 2]])
    scores = np.array([[0.5, 0.5, 0.8, 1.0], [0.1, 0.2, 1.0, 0.7]], dtype=np.float32)
    assert summarise(ids, scores, ["a", "b", "c"]) == [
        {"label": "a", "share": 0.375, "score": 0.6},
        {"label": "b", "share": 0.0, "score": 0.0},
        {"label": "c", "share": 0.375, "score": 0.9},
    ]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    write_results(tmp_path, "x", noise(), np.zeros((40, 90), dtype=np.int64), ["cat"], {"number": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("zegclip.segment.index_mask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, "x", noise(), np.zeros((40, 90), dtype=np.int64), ["tree"], {"number": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unknown_device(model_folder):
    with pytest.raises(ValueError, match="no device 'toaster'"):
        load_segmenter(model_folder, "toaster")
