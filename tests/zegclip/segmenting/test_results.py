"""Results of pictures: the formats, and what stays when a picture is segmented again."""

import errno
import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
from zegclip.segmenting.results import _write_array, find_unfinished, write_results
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
    with pytest.warns(UserWarning, match="four_overlay.png lies in the folder for results"):
        found = find_pictures([tmp_path / "pictures"], recursive=True, without=output)
    assert [path.removeprefix(f"{tmp_path}/pictures/") for path in found] == ["one.png", "a/one.png", "a/b/two.png"]
    assert list(dict(name_results(found)).values()) == ["one", "one_2", "two"]
    assert find_pictures([tmp_path / "pictures"]) == [str(picture)]
    with pytest.raises(UsageError, match="recursive"):
        find_pictures([tmp_path])


def test_results_in_other_folders_are_no_pictures(segment, picture):
    output, _ = segment("png", "overlay")
    shutil.copytree(output, picture.parent / "earlier")
    shutil.copy(picture, picture.parent / "earlier" / "two_mask.png")  # It is no result.
    found = find_pictures([picture.parent], recursive=True)
    assert found == [str(picture), str(picture.parent / "earlier" / "two_mask.png")]


def test_a_closed_subfolder_is_an_error(tmp_path, picture, monkeypatch):
    (tmp_path / "pictures" / "closed").mkdir()
    scan = os.scandir

    def refuse(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        find_pictures([tmp_path / "pictures"], recursive=True)


@pytest.fixture
def served(picture):
    """The URL of the picture's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=picture.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls(segment, served):
    url = f"{served}/one.png?size=1"
    output, paths = segment("png", sources=[url])
    assert paths == {url: "one"}
    assert json.loads((output / "one.json").read_text())["image"] == url
    # The picture behind it may be another one by now.
    assert find_unfinished(paths, LABELS, output, "name", formats=["png"]) == paths


def test_of_a_url_no_other_format_stays(segment, served, picture):
    segment("overlay", *ALL, sources=[f"{served}/one.png"])
    Image.open(picture).resize((50, 30)).save(picture)
    output, _ = segment("png", sources=[f"{served}/one.png"])
    assert {path.name for path in output.iterdir()} == {"one.json", "one_mask.png"}
    assert "segmentation" not in (output / "one.json").read_text()


@pytest.mark.parametrize("url", ["http://[bad/x.png", "https://[/x.png"])
def test_an_impossible_url(url):
    with pytest.raises(UsageError, match="URL"):
        find_pictures([url])


def test_a_url_with_a_null_byte_gets_a_name():
    [(_, name)] = name_results(["http://host/a%00b.png"])
    assert name == "a_b"


@pytest.mark.parametrize("name", ["one_mask.png", "one_overlay.png", "one.geojson", "one_scores.npy"])
def test_files_of_others_stay(segment, tmp_path, name):
    """Files with the names of results, but without a record of ours."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text("mine")
    for _ in range(2):
        segment("png", "geojson", threshold=0.1)
        assert (tmp_path / "results" / name).read_text() == "mine"
        assert (tmp_path / "results" / "one_2_mask.png").exists()
        (tmp_path / "results" / "one_2.json").unlink()  # as after a kill


def test_files_of_others_beside_results_stay(segment, model_folder):
    output, paths = segment("png")
    for name in ("one.geojson", "one_scores.npy"):
        (output / name).write_text("mine")
    segment("png", labels=LABELS[:2])
    assert find_unfinished(paths, LABELS[:2], output, "name", formats=["png", "geojson"]) == paths
    segmenter = load_segmenter(model_folder, "cpu")
    outcome = segment_pictures(segmenter, paths, LABELS[:2], output, "name", formats=["png", "geojson"])
    assert outcome.segmented == 0
    assert "one.geojson was not written by zegclip" in outcome.failures[0]
    for name in ("one.geojson", "one_scores.npy"):
        assert (output / name).read_text() == "mine"


def test_a_picture_whose_results_were_overtaken_by_another_command_is_a_failure(segment, tmp_path, model_folder):
    """Both commands have chosen the same names before either has written."""
    other = tmp_path / "others" / "one.png"
    other.parent.mkdir()
    Image.new("RGB", (9, 9)).save(other)
    output, _ = segment("png")
    before = (output / "one_mask.png").read_bytes()
    segmenter = load_segmenter(model_folder, "cpu")
    outcome = segment_pictures(segmenter, {str(other): "one"}, LABELS, output, "name", formats=["png"])
    assert outcome.segmented == 0
    assert "Run this command again" in outcome.failures[0]
    assert (output / "one_mask.png").read_bytes() == before


def test_a_single_pixel_is_a_polygon(tmp_path):
    ids = np.zeros((1500, 1500), dtype=np.int64)
    ids[700, 700] = 1
    result = {"segmentation": ids, "scores": np.ones(ids.shape), "labels": LABELS[:2]}
    write_results(tmp_path, "x", Image.new("RGB", (1500, 1500)), result, {}, ["geojson"])
    features = json.loads((tmp_path / "x.geojson").read_text())["features"]
    assert [feature["properties"]["label"] for feature in features] == LABELS[:2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named_as_such():
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        _write_array(np.zeros(100_000), Path("/dev/full"))
