"""Data-set folders of every kind: their pictures and classes, or an error of one line."""

import json
import os
import re
from itertools import count

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from zegclip.processing.datasets import load_pictures

pytestmark = pytest.mark.thorough

CLASSES = ["cat", "dog", "tree"]
# Names in a metadata file: of files that exist, do not exist, or are outside of its folder.
NAMES = st.one_of(
    st.sampled_from(["a.png", "b.png", "c.png", "./a.png", "deep/d.png", "deep/../b.png", "deep//d.png"]),
    st.sampled_from(["a.png", "b.png", "c.png", "deep/d.png"]),
    st.sampled_from([
        "../secret.png", "deep/../../secret.png", "/etc/passwd", "~/a.png", "C:\\a.png", "..", ".", "", "/",
    ]),
    st.sampled_from(["gone.png", "deep/gone.png", "gone/a.png", "a\n.png", "\0", "a\0.png", "\ud800.png", "x" * 300]),
    st.sampled_from([
        "\ud800/a.png", "\0/a.png", "x" * 300 + "/a.png", "link.png", "loop.png", "dangling.png", "deep",
    ]),
    st.one_of(st.none(), st.integers(), st.lists(st.just("a.png"), max_size=1), st.text(max_size=5)),
)  # fmt: skip
ODD_LINES = st.sampled_from([
    b"", b"  ", b"{", b"[]", b"null", b"3", b'"a.png"', b"\xff", b"[" * 99_999, b"9" * 9999, b'{"file_name": "a.png"}',
    b"\0",
])  # fmt: skip
IDS = st.sampled_from(["0", "1", "2", "00", "255", "65536", "-1", "1e3", "٣", "9" * 5000])
LABELS = st.one_of(st.sampled_from(CLASSES), st.text(max_size=3), st.none(), st.integers())
LABEL_FILES = st.one_of(
    st.dictionaries(IDS, LABELS, max_size=4).map(lambda names: json.dumps(names).encode()),
    ODD_LINES,
    st.just(b'{"0": "cat", "0": "dog", "1": "tree"}'),
)
CLASS_FILES = st.one_of(
    st.just(("classes.txt", "\n".join(CLASSES).encode())),
    st.just(("classes.txt", "\n".join(CLASSES).encode())),
    st.tuples(st.just("classes.txt"), st.one_of(st.binary(max_size=20), st.text(max_size=20).map(str.encode))),
    st.tuples(st.just("id2label.json"), LABEL_FILES),
)


def write_line(picture, mask):
    """A line of a metadata file."""
    return json.dumps({"file_name": picture, "mask_file_name": mask}).encode()


def draw_pair(folder, name, seed, masks="masks"):
    generator = np.random.default_rng(seed)
    width, height = generator.integers(1, 9, 2)
    picture, mask = folder / "images" / name, folder / masks / name
    for path in (picture, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    ids = generator.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
    Image.new("RGB", (int(width), int(height))).save(picture, "PNG")
    Image.fromarray(ids).save(mask, "PNG")
    return ids


def test_metadata_names_nothing_outside_of_its_folder(fuzz, tmp_path):
    numbers = count()
    good = st.sampled_from(["a.png", "b.png", "c.png", "deep/d.png"])
    outside = st.sampled_from(["../secret.png", "deep/../../secret.png", "../data/../secret.png"])
    lines = st.one_of(
        st.builds(write_line, good, outside),
        st.builds(write_line, outside, good),
        st.builds(write_line, NAMES, NAMES),
        good.map(lambda name: write_line(name, name)),
        ODD_LINES,
    )

    def check(case):
        lines, (classes, names) = case
        root = tmp_path / f"{next(numbers)}"
        folder = root / "data"
        for name in ("a.png", "b.png", "c.png", "deep/d.png", "../secret.png"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 3), 1).save(path)
        (folder / "link.png").symlink_to("a.png")
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "dangling.png").symlink_to("nowhere")
        (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
        (folder / classes).write_bytes(names)
        loaded = fuzz.attempt(lambda: load_pictures(str(folder)))
        if loaded is None:
            succeeded, _, complaints = fuzz.command("check", folder, "--output", root / "report", "--workers", 0)
            assert not succeeded
            assert len(complaints) == 1
            assert not (root / "report").exists()
            return False
        data, split = loaded
        rows = data["train"].with_format(None)._data.to_pylist()
        assert len(rows) == len([line for line in lines if line.strip()])
        for row in rows:
            for column in ("image", "mask"):
                assert os.path.realpath(row[column]["path"]).startswith(f"{os.path.realpath(folder)}{os.sep}")
        assert len(split.names) == len(set(split.names))
        return True

    cases = st.tuples(st.lists(lines, min_size=1, max_size=3), CLASS_FILES)
    fuzz.run("folders, metadata", cases, check, few=40, many=250)


FILE_NAMES = st.one_of(
    st.sampled_from(["a.png", "b.png", "train/c.png", "val/d.png", "train/deep/e.png", "é.png", "🐈.png", "a b.png"]),
    st.sampled_from(["-.png", "..png", ".hidden.png", "a\nb.png", "\x1b[2J.png", "a.PNG", "a.txt", "%s.png", "*.png"]),
    st.binary(min_size=1, max_size=9).map(lambda name: os.fsdecode(re.sub(rb"[/\0]", b"_", name)) + ".png"),
)
DAMAGES = st.sampled_from(
    ["none"] * 5 + ["no mask", "no picture", "cut", "empty", "size", "value", "link", "dangling", "loop"]
)


def test_every_pair_is_counted_or_broken(fuzz, tmp_path):
    """`zegclip check` of pictures and masks with any names."""
    numbers = count()

    def check(case):
        files, (classes, names) = case
        root = tmp_path / f"{next(numbers)}"
        folder = root / "data"
        folder.mkdir(parents=True)
        (folder / classes).write_bytes(names)
        pixels, broken = np.zeros(256, dtype=int), 0
        for seed, (name, damage) in enumerate(files.items()):
            ids = draw_pair(folder, name, seed)
            picture, mask = folder / "images" / name, folder / "masks" / name
            if damage == "no mask":
                mask.unlink()
            elif damage == "no picture":
                picture.unlink()
            elif damage in ("cut", "empty"):
                picture.write_bytes(picture.read_bytes()[: 40 if damage == "cut" else 0])
            elif damage == "size":
                Image.new("RGB", (50, 50)).save(picture, "PNG")
            elif damage == "value":
                Image.fromarray(np.full_like(ids, 200)).save(mask, "PNG")
            elif damage in ("dangling", "loop"):
                picture.unlink()
                picture.symlink_to("nowhere" if damage == "dangling" else picture.name)
            elif damage == "link":
                picture.rename(root / "elsewhere.png")
                picture.symlink_to(root / "elsewhere.png")
            if damage in ("none", "link"):
                pixels += np.bincount(ids.ravel(), minlength=256)
            elif damage not in ("no mask", "no picture"):
                broken += 1
        report = root / "report"
        loaded = fuzz.attempt(lambda: load_pictures(str(folder)))
        words = ["check", folder, "--output", report, "--workers", 0]
        succeeded, _, complaints = fuzz.command(*words, silent_failure=True)
        assert (loaded is None) == bool(complaints)
        if complaints:
            assert len(complaints) == 1
            assert not report.exists()
            return False
        found = json.loads((report / "report.json").read_text(encoding="utf-8"))
        assert succeeded == (found["num_broken"] == 0)
        ours = all(name.lower().endswith(".png") and not os.path.basename(name).startswith(".") for name in files)
        if ours and names == "\n".join(CLASSES).encode():
            assert found["num_broken"] == broken
            counted = [sum(row[key] for key in row if key.endswith("_pixels")) for row in found["classes"]]
            assert counted == pixels[:3].tolist()
        return succeeded

    files = st.dictionaries(FILE_NAMES, DAMAGES, min_size=1, max_size=4)
    fuzz.run("folders, checked through the command", st.tuples(files, CLASS_FILES), check, few=15, many=200)
