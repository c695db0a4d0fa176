"""Results of pictures: the formats, and what stays when a picture is segmented again."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from matplotlib.path import Path as Line
from PIL import Image
from pycocotools import mask as run_lengths
from transformers import pipeline

from zegclip.errors import UsageError
from zegclip.processing.image_reading import load_class_ids
from zegclip.segmenting.outlines import outline
from zegclip.segmenting.pictures import find_pictures, name_results
from zegclip.segmenting.results import find_unfinished
from zegclip.segmenting.segmenter import load_segmenter, segment_pictures

LABELS = ["cat", "tree", "b", "umbrella"]
ALL = ["png", "coco", "geojson", "scores"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "one.png"
    path.parent.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (5, 11, 3), dtype=np.uint8)
    Image.fromarray(values).resize((90, 40)).save(path)
    return path


@pytest.fixture
def segment(model_folder, picture, tmp_path):
    segmenter = load_segmenter(model_folder, "cpu")

    def run(*formats, labels=LABELS, sources=(picture,), **settings):
        output = tmp_path / "results"
        paths = dict(name_results(find_pictures(sources), output))
        assert find_unfinished(paths, labels, output, "name", formats=formats, **settings) == paths
        outcome = segment_pictures(segmenter, paths, labels, output, "name", formats=formats, **settings)
        assert (outcome.segmented, outcome.failures) == (len(paths), [])
        return output, paths

    return run


def filled(polygons, height, width):
    """Rasterise with another program than ours: how many polygons hold the centre of each pixel."""
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1).reshape(-1, 2)
    counts = np.zeros(len(centres), dtype=int)
    for outer, *holes in polygons:
        inside = Line(outer).contains_points(centres)
        for hole in holes:
            inside &= ~Line(hole).contains_points(centres)
        counts += inside
    return counts.reshape(height, width)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_polygons_hold_the_pixels_of_a_region(share):
    inside = np.random.default_rng(0).random((30, 41)) < share
    np.testing.assert_array_equal(filled(outline(inside), 30, 41), inside)


def test_a_rectangle_has_eight_points_and_a_hole_its_own():
    inside = np.ones((50, 70), dtype=bool)
    inside[20:30, 20:40] = False
    [[outer, hole]] = outline(inside)
    assert len(outer) == len(hole) == 9
    assert outer[0] == outer[-1]
    assert np.ptp(outer, axis=0) == pytest.approx([70, 50], abs=0.01)


def test_all_formats_show_the_same(segment, picture, model_folder, tmp_path):
    output, paths = segment("overlay", *ALL, threshold=0.1)
    assert {path.name for path in output.iterdir()} == {
        f"one{end}" for end in (".json", ".geojson", "_mask.png", "_overlay.png", "_scores.npy")
    }
    ids = load_class_ids(output / "one_mask.png")
    rows = json.loads((output / "one.json").read_text())["labels"]
    for index, row in enumerate(rows):
        mask = run_lengths.decode(row["segmentation"])
        np.testing.assert_array_equal(mask, ids == index)
        assert row["area"] == mask.sum()
    collection = json.loads((output / "one.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert 1 < len(collection["features"]) == sum(row["share"] > 0 for row in rows)
    for feature in collection["features"]:
        index = LABELS.index(feature["properties"]["label"])
        np.testing.assert_array_equal(filled(feature["geometry"]["coordinates"], *ids.shape), ids == index)
        assert feature["properties"]["share"] == pytest.approx((ids == index).mean(), abs=1e-6)
    scores = np.load(output / "one_scores.npy")
    usual = pipeline("zero-shot-image-segmentation", model=str(model_folder), device="cpu")
    found = usual(str(picture), candidate_labels=LABELS, return_segmentation_scores=True)
    for index, result in enumerate(found):
        np.testing.assert_allclose(scores[index], result["segmentation_scores"], atol=1e-3)
    assert find_unfinished(paths, LABELS, output, "name", formats=ALL, threshold=0.1) == {}


@pytest.mark.parametrize(("format", "file"), [("geojson", "one.geojson"), ("scores", "one_scores.npy")])
def test_another_format_is_added_to_the_same_results_alone(segment, format, file):
    output, _ = segment("png")
    before = (output / "one_mask.png").read_bytes()
    segment(format)
    assert (output / "one_mask.png").read_bytes() == before
    segment("png", labels=LABELS[:2])  # The other file would show other labels.
    assert not (output / file).exists()
    segment("overlay", format, labels=LABELS[1:])
    assert not (output / "one_mask.png").exists()


def test_results_without_run_lengths_are_not_finished_in_this_format(segment):
    segment("png")
    output, paths = segment("coco")
    assert find_unfinished(paths, LABELS, output, "name", formats=["coco", "png"]) == {}
    segment("geojson")
    assert find_unfinished(paths, LABELS, output, "name", formats=["coco", "geojson"]) == {}
    segment("geojson", labels=LABELS[:2])
    segment("coco", labels=LABELS[:2])


def test_subfolders_are_looked_into_if_asked_for(tmp_path, picture):
    for place in ("a/one.png", "a/b/two.png", ".hidden/three.png", "results/four_overlay.png"):
        (tmp_path / "pictures" / place).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(picture, tmp_path / "pictures" / place)
    output = tmp_path / "pictures" / "results"
    found = find_pictures([tmp_path / "pictures"], recursive=True, without=output)
    assert [path.removeprefix(f"{tmp_path}/pictures/") for path in found] == ["one.png", "a/one.png", "a/b/two.png"]
    assert list(dict(name_results(found)).values()) == ["one", "one_2", "two"]
    assert find_pictures([tmp_path / "pictures"]) == [str(picture)]
    with pytest.raises(UsageError, match="recursive"):
        find_pictures([tmp_path])


def test_urls(segment, picture, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=picture.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/one.png?size=1"
        try:
            output, paths = segment("png", sources=[url])
        finally:
            server.shutdown()
    assert paths == {url: "one"}
    assert json.loads((output / "one.json").read_text())["image"] == url
    # The picture behind it may be another one by now.
    assert find_unfinished(paths, LABELS, output, "name", formats=["png"]) == paths
