"""Picture files of every format, intact and damaged, are segmented as a viewer displays them, or refused."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import reject
from hypothesis import strategies as st
from PIL import Image

from zegclip.processing.image_reading import load_class_ids, load_rgb

pytestmark = pytest.mark.thorough

LABELS = ["cat", "tree", "b"]
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
    "ICO": ("L", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
}
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "TGA")

# The long side is up to 5000 if the short one is at least 50: thinner pictures have thousands of windows.
SIZES = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(91, 5000), st.integers(50, 90)).flatmap(st.permutations).map(tuple),
)


def draw(mode, size, seed):
    """Draw a picture of random pixels in any mode."""
    generator, shape = np.random.default_rng(seed), size[::-1]
    if mode == "1":
        return Image.fromarray(generator.integers(0, 2, shape).astype(np.uint8) * 255).convert("1", dither=0)
    if mode == "P":
        image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        image.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 65536, shape).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(generator.integers(0, int(generator.choice([256, 65536])), shape).astype(np.int32))
    if mode == "F":  # others than grey values are refused
        values = generator.choice([generator.uniform(0, 1, shape), generator.integers(0, 256, shape)])
        return Image.fromarray(values.astype(np.float32))
    bands = Image.getmodebands(mode)
    content = generator.integers(0, 256, (*shape, bands), dtype=np.uint8)
    return Image.frombytes(mode, size, content.tobytes())


@st.composite
def whole_files(draw_from):
    """Draw `(bytes, format, picture, orientation)`."""
    kind = draw_from(st.sampled_from(sorted(MODES)))
    mode = draw_from(st.sampled_from(MODES[kind]))
    picture = draw(mode, draw_from(SIZES), draw_from(st.integers(0, 99)))
    if kind == "ICO":
        picture = picture.resize((min(picture.width, 99), min(picture.height, 99)))
    options = {"sizes": [picture.size]} if kind == "ICO" else {}
    orientation = 1
    if kind in ("PNG", "JPEG", "WEBP"):
        orientation = draw_from(st.sampled_from([1, 1, 3, 6, 8, 5, 0, 9, 65535]))
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = draw_from(st.sampled_from([exif.tobytes(), exif.tobytes(), b"Exif\0\0MM\0*\0\0"]))
        orientation = orientation if options["exif"] == exif.tobytes() else 1
    if kind == "TIFF" and mode not in ("F", "I", "I;16", "PA", "LAB"):
        options["compression"] = draw_from(st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    if kind in ("PNG", "GIF") and mode in ("P", "L"):
        options["transparency"] = draw_from(st.integers(0, 255))
    if kind in ANIMATED and draw_from(st.booleans()):
        options |= {"save_all": True, "append_images": [draw(mode, picture.size, 100 + n) for n in range(2)]}
    file = io.BytesIO()
    try:
        picture.save(file, kind, **options)
    except OSError:  # such as transparency in a later frame
        reject()
    return file.getvalue(), kind, picture, orientation, "transparency" in options


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@st.composite
def broken_files(draw_from):
    """Draw the bytes of a file that is truncated, changed, extended or not a picture."""
    damage = draw_from(st.sampled_from(["cut", "changed", "grown", "header", "bytes"]))
    if damage == "bytes":
        return draw_from(st.binary(max_size=200))
    if damage == "header":
        size = draw_from(st.tuples(*[st.sampled_from([0, 1, 9, 5000, 9999, 30000, 2**31 - 1, 2**32 - 1])] * 2))
        depth, colours = draw_from(st.sampled_from([(1, 0), (8, 2), (8, 3), (16, 0), (16, 6), (7, 9)]))
        pixels = zlib.compress(bytes(draw_from(st.integers(0, 2000))))
        header = struct.pack(">IIBBBBB", *size, depth, colours, 0, 0, draw_from(st.integers(0, 1)))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    content = bytearray(draw_from(whole_files())[0])
    if damage == "cut":
        return bytes(content[: draw_from(st.integers(0, len(content) - 1))])
    if damage == "grown":
        return bytes(content) + draw_from(st.binary(min_size=1, max_size=99))
    # Mostly in the header, where a change has more effect.
    places = st.one_of(st.integers(0, min(len(content), 80) - 1), st.integers(0, len(content) - 1))
    for place, value in draw_from(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[place] = value
    return bytes(content)


def upright(values, orientation):
    """Apply an EXIF orientation to an array with NumPy only."""
    turns = {
        3: lambda: values[::-1, ::-1],
        5: lambda: values.swapaxes(0, 1),
        6: lambda: np.rot90(values, -1),
        8: lambda: np.rot90(values),
    }
    return turns.get(orientation, lambda: values)()


def expected_pixels(picture):
    """Pixels as a viewer displays them, `(height, width, 3)` floats, if NumPy can compute them; else `None`."""
    values = np.asarray(picture).astype(np.float64)
    if picture.mode in ("1", "L"):
        return np.stack([values * (255 if picture.mode == "1" else 1)] * 3, axis=-1)
    if picture.mode == "RGB":
        return values
    if picture.mode == "I;16":
        return np.stack([values / 257] * 3, axis=-1)
    if picture.mode in ("LA", "RGBA"):
        colours, opaque = values[..., :-1], values[..., -1:] / 255
        return np.broadcast_to(colours * opaque + 255 * (1 - opaque), (*values.shape[:2], 3))
    if picture.mode == "P":
        return np.array(picture.getpalette()).reshape(-1, 3)[np.asarray(picture)].astype(np.float64)
    return None


@pytest.fixture
def segmented(segment, tmp_path):
    """Segment a file and check its masks against those of the same pixels in a plain PNG file."""

    def run(path):
        rgb = load_rgb(path)
        ids, scores = segment(str(path), LABELS)
        assert ids.shape == scores.shape == (rgb.height, rgb.width)
        assert set(np.unique(ids)) <= set(range(len(LABELS)))
        assert scores.min() >= 0
        assert scores.max() <= 1
        rgb.save(tmp_path / "plain.png")
        plain_ids, plain_scores = segment(str(tmp_path / "plain.png"), LABELS)
        np.testing.assert_array_equal(ids, plain_ids)
        np.testing.assert_array_equal(scores, plain_scores)
        return np.asarray(rgb)

    return run


def test_whole_pictures_are_segmented_as_a_viewer_shows_them(fuzz, segmented, tmp_path):
    def check(case):
        content, kind, picture, orientation, transparent = case
        (tmp_path / "picture").write_bytes(content)
        pixels = segmented(tmp_path / "picture")
        turned = upright(np.zeros(picture.size[::-1]), orientation)
        assert pixels.shape == (*turned.shape, 3)
        expected = expected_pixels(picture) if kind in LOSSLESS and not transparent else None
        if expected is not None:
            np.testing.assert_allclose(pixels, upright(expected, orientation), atol=1)
        return True

    fuzz.run("pictures, whole", whole_files(), check, few=25, many=250)


def test_broken_pictures_are_segmented_or_refused(fuzz, segmented, tmp_path):
    def check(content):
        path = tmp_path / "picture.jpg"
        path.write_bytes(content)
        return fuzz.attempt(lambda: segmented(path), path) is not None

    fuzz.run("pictures, broken", broken_files(), check, few=40, many=500)


# Names that a file system allows, but that break careless programs.
STEMS = st.one_of(
    st.sampled_from(
        [b"-", b"--labels", b"..", b"...", b"~", b"a b", b"%s", b"*", b"C:\\a", b"a\nb", b"\x1b[2J", b"\xff"]
    ),
    st.sampled_from(
        [b"a" * 250, "ä".encode() * 124, "\u202egnp".encode(), "🐈".encode(), b".hidden", b"con", b"a.json"]
    ),
    st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_")),
)


@st.composite
def picture_folders(draw_from):
    """Draw `(name, how, content)` of some files: how is `file`, `link`, `dangling`, `loop` or `folder`."""
    files = {}
    for _ in range(draw_from(st.integers(1, 4))):
        name = draw_from(STEMS) + draw_from(st.sampled_from([b".png", b".PNG", b".jpg", b".txt"]))
        how = draw_from(st.sampled_from(["file", "file", "file", "link", "dangling", "loop", "folder"]))
        content = draw_from(st.one_of(st.just(None), broken_files()))
        files[name] = (how, content)
    return files


def test_a_folder_of_any_files(fuzz, model_folder, noise, tmp_path):
    """Through the command: the output contains complete results of all readable pictures, and nothing else."""
    picture = io.BytesIO()
    Image.fromarray(noise).save(picture, "PNG")

    def check(files):
        place = tmp_path / str(len(os.listdir(tmp_path)))
        folder, output, elsewhere = place / "pictures", place / "output", place / "elsewhere"
        for made in (folder, elsewhere):
            made.mkdir(parents=True)
        for number, (name, (how, content)) in enumerate(files.items()):
            path = os.path.join(os.fsencode(folder), name)
            target = elsewhere / f"{number}.bin"
            if how == "folder":
                os.mkdir(path)
                continue
            if how in ("link", "dangling", "loop"):
                os.symlink(os.path.basename(path) if how == "loop" else target, path)
            if how in ("file", "link"):
                with open(path if how == "file" else target, "wb") as file:
                    file.write(picture.getvalue() if content is None else content)
        before = sorted(os.fsencode(path) for path in place.rglob("*"))
        readable, unreadable = [], []
        for name, (how, _) in files.items():
            if name.startswith(b".") or name.endswith(b".txt") or how == "folder":
                continue
            path = os.path.join(os.fsencode(folder), name)
            image = fuzz.attempt(lambda path=path: load_rgb(os.fsdecode(path)))
            (unreadable if image is None else readable).append(path)
        words = ["segment", folder, "--labels", "cat,b", "--model", model_folder, "--output", output]
        frames = ("first one is read.", "first frame is read.")  # Of several, this is said rightly.
        succeeded, _, complaints = fuzz.command(*words, expected=frames)
        assert succeeded == (bool(readable) and not unreadable)
        many = len(readable) + len(unreadable) > 1
        assert len(complaints) == len(unreadable) + bool(unreadable and many) + (not readable and not unreadable)
        assert sorted(os.fsencode(path) for path in place.rglob("*") if output not in [path, *path.parents]) == before
        results = os.listdir(output) if output.exists() else []
        assert len(results) == 3 * len(readable)
        records = [json.loads((output / name).read_bytes()) for name in results if name.endswith(".json")]
        assert len(records) == len(readable)
        for name in results:
            if name.endswith("_mask.png"):
                assert set(np.unique(load_class_ids(output / name))) <= {0, 1}
        return succeeded

    fuzz.run("pictures, folders through the command", picture_folders(), check, few=8, many=120)
