"""Label maps: the ids that were written, or an error of one line."""

import io

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from zegclip.drawing.colours import index_mask, make_colours
from zegclip.processing.class_split import split_classes
from zegclip.processing.datasets import read_sample
from zegclip.processing.image_reading import load_class_ids

pytestmark = pytest.mark.thorough

SIZES = st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.just(1), st.integers(1, 5000)))
# Formats that preserve ids, and the modes to save them in.
KINDS = {
    "PNG": ("1", "L", "P", "I;16"),
    "TIFF": ("1", "L", "P", "I;16", "I"),
    "BMP": ("1", "L", "P"),
    "PPM": ("L", "I;16"),
    "TGA": ("L", "P"),
    "PCX": ("L", "P"),
}
LARGEST = {"1": 1, "L": 255, "P": 255, "I;16": 65535, "I": 2**31 - 1}


@st.composite
def written_masks(draw):
    """Draw `(ids, bytes, mode)` of a label map in a file."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    mode = draw(st.sampled_from(KINDS[kind]))
    largest = draw(st.sampled_from(sorted({1, 3, 150, LARGEST[mode]} - set(range(LARGEST[mode] + 1, 200)))))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    ids = generator.integers(0, min(largest, LARGEST[mode]) + 1, draw(SIZES))
    if mode in ("L", "P"):
        image = Image.fromarray(ids.astype(np.uint8))
        if mode == "P":
            image.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
    elif mode == "1":
        image = Image.fromarray(ids.astype(np.uint8) * 255).convert("1", dither=0)
    else:
        image = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.int32))
    file = io.BytesIO()
    image.save(file, kind)
    return ids, file.getvalue(), mode


def test_ids_are_what_was_written(fuzz, tmp_path):
    def check(case):
        ids, content, _ = case
        (tmp_path / "mask.png").write_bytes(content)
        read = load_class_ids(tmp_path / "mask.png")
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, ids)
        np.testing.assert_array_equal(load_class_ids(content), ids)
        return True

    fuzz.run("masks, whole", written_masks(), check, few=25, many=200)


def test_index_masks_keep_their_ids(fuzz, tmp_path):
    def check(case):
        labels, size, seed = case
        ids = np.random.default_rng(seed).integers(-1, labels, size)
        index_mask(ids, make_colours(labels)).save(tmp_path / "mask.png")
        no_label = 255 if labels <= 255 else 65535
        np.testing.assert_array_equal(load_class_ids(tmp_path / "mask.png"), np.where(ids < 0, no_label, ids))
        return True

    cases = st.tuples(st.integers(1, 4000), SIZES, st.integers(0, 99))
    fuzz.run("masks, our own", cases, check, many=100)


@st.composite
def damaged(draw, contents):
    """Draw file contents that are truncated, changed or intact."""
    content = bytearray(draw(contents))
    damage = draw(st.sampled_from(["none", "none", "cut", "changed"]))
    if damage == "cut":
        del content[draw(st.integers(0, len(content))) :]
    if damage == "changed":
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] = draw(st.integers(0, 255))
    return bytes(content)


def test_samples_have_the_labels_of_their_masks(fuzz, tmp_path):
    """For any mask of a picture, and any class list."""
    masks = written_masks().flatmap(
        lambda case: st.tuples(st.just(case[0]), damaged(st.just(case[1])), st.just(case[1]))
    )

    @st.composite
    def classes(draw, ids):
        """Mostly the ids that occur in the mask."""
        values = draw(st.permutations(sorted(set(np.unique(ids).tolist()) - {255})[:300] or [0]))
        for value in draw(st.lists(st.sampled_from([0, 1, 2, 255, 65535, -1]), max_size=2)):
            (values.remove if value in values[1:] else values.append)(value)
        return values

    def check(case):
        ((ids, content, whole), values), turned, embedded = case
        height, width = ids.shape[::-1] if turned else ids.shape
        Image.new("RGB", (width, height)).save(tmp_path / "picture.png")
        (tmp_path / "mask.png").write_bytes(content)
        split = fuzz.attempt(lambda: split_classes([f"class {value}" for value in values], mask_values=values))
        if split is None:
            return False
        path = str(tmp_path / "mask.png")
        row = {
            "image": {"path": str(tmp_path / "picture.png"), "bytes": None},
            "mask": {"path": None, "bytes": content} if embedded else {"path": path, "bytes": None},
        }
        sample = fuzz.attempt(lambda: read_sample(row, split, 7), "mask of picture 7" if embedded else path)
        if sample is None:
            known = set(np.unique(ids)) <= {*values, *split.ignored_values}
            assert content != whole or not known or ids.shape != (height, width)
            return False
        image, labels = sample
        assert labels.shape == image.size[::-1] == (height, width)
        if content == whole:
            expected = np.full(ids.shape, split.ignore_index)
            for label, value in enumerate(values):
                expected[ids == value] = label
            np.testing.assert_array_equal(labels, expected)
        assert set(np.unique(labels)) <= {*range(len(values)), split.ignore_index}
        return True

    described = masks.flatmap(lambda mask: st.tuples(st.just(mask), classes(mask[0])))
    cases = st.tuples(described, st.integers(0, 9).map(lambda number: number == 9), st.booleans())
    fuzz.run("masks, beside pictures", cases, check, few=40, many=300)


def test_label_maps_in_memory(fuzz, image_processor):
    """Arrays of any type and shape, passed to the image processor."""
    types = ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "bool", "float32", "float64"]
    shapes = st.one_of(st.just((6, 8)), st.lists(st.integers(0, 8), max_size=4).map(tuple))

    def check(case):
        kind, shape = case
        ids = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 5).astype(kind)
        picture = Image.new("RGB", (8, 6))
        result = fuzz.attempt(
            lambda: image_processor(picture, segmentation_maps=ids, do_resize=False, return_tensors="np")
        )
        if result is None:
            assert shape not in ((6, 8), (1, 6, 8)) or kind.startswith("float")
            return False
        assert not kind.startswith("float")
        np.testing.assert_array_equal(result["labels"][0], ids.reshape(6, 8))
        return True

    fuzz.run("masks, in memory", st.tuples(st.sampled_from(types), shapes), check, many=100)
