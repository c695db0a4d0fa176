"""Label maps are read as the numbers stored in their file, from every kind of source, or refused; never wrongly."""

import importlib.util
import io
import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from PIL import features

from zegclip.processing.image_reading import load_class_ids, load_rgb
from zegclip.processing.input_error import InputError

_spec = importlib.util.spec_from_file_location("mask_encoders", Path(__file__).with_name("mask_encoders.py"))
encoders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(encoders)

SIZES = [(1, 1), (18, 33)]
DEPTHS = (1, 2, 4, 8, 16, 32)


def options(**values):
    """All combinations of some options' values."""
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


def draw(size, lowest, highest):
    return np.random.default_rng([*size, highest - lowest]).integers(lowest, highest + 1, size)


def png_files(size):
    for bits, kind in itertools.product(DEPTHS[:5], ("grey", "palette")):
        if kind == "palette" and bits > 8:
            continue
        ids = draw(size, 0, 2**bits - 1)
        for chosen in options(interlaced=(False, True), transparent=(False, True)):
            yield (bits, kind, str(chosen)), ids, encoders.png(ids, bits, kind, **chosen)


def tiff_files(size):
    wild = [{}, {"predictor": True}, {"lowest_first": True}, {"tile": 16}, {"planar": 2}, {"rows_per_strip": 2}]
    for bits, kind, signed in itertools.product(DEPTHS, ("grey", "inverted", "palette"), (False, True)):
        if (signed and bits < 8) or (kind == "palette" and (bits > 8 or signed)):
            continue
        ids = draw(size, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else draw(size, 0, 2**bits - 1)
        for order, compression in itertools.product("<>", ("raw", "lzw", "deflate", "packbits")):
            for chosen in wild:
                if "predictor" in chosen and (compression in ("raw", "packbits") or bits < 8):
                    continue
                if "lowest_first" in chosen and bits > 8:
                    continue
                content = encoders.tiff(ids, bits, kind, order, signed, compression, **chosen)
                yield (bits, kind, signed, order, compression, *chosen), ids, content


def bmp_files(size):
    wild = [{}, {"top_down": True}, {"old_header": True}, {"stretched": True}, {"run_length": True}, {"colours": 2}]
    for bits, kind, chosen in itertools.product((1, 4, 8), ("grey", "inverted", "palette"), wild):
        if not ("run_length" in chosen and bits == 1):
            ids = draw(size, 0, chosen.get("colours", 2**bits) - 1)
            yield (bits, kind, *chosen), ids, encoders.bmp(ids, bits, kind, **chosen)


def pgm_files(size):
    for largest, plain in itertools.product((None, 1, 3, 7, 15, 100, 254, 255, 256, 4095, 65535), (False, True)):
        ids = draw(size, 0, largest or 1)
        yield (largest, plain), ids, encoders.pgm(ids, largest, plain)
    # Larger than the header says.
    yield "beyond", draw(size, 0, 255), encoders.pgm(draw(size, 0, 255), 20)


def gif_files(size):
    for bits, kind in itertools.product((1, 2, 4, 8), ("grey", "inverted", "palette")):
        ids = draw(size, 0, 2**bits - 1)
        for chosen in options(interlaced=(False, True), transparent=(False, True)):
            yield (bits, kind, str(chosen)), ids, encoders.gif(ids, bits, kind, **chosen)


def is_refused_tiff(case):
    bits, kind, signed, order, compression, *wild = case
    return (
        (bits > 8 and kind == "inverted" and (bits, signed, order) != (16, False, "<"))
        or (bits == 8 and signed and (kind == "inverted" or wild == ["lowest_first"]))
        or (bits == 32 and order == ">" and not signed)
        # Pillow swaps the bytes of these once too often,
        or (bits > 8 and signed and order == ">" and compression != "raw")
        # and has no way for these, or forgets one of two.
        or (wild == ["planar"] and compression == "raw" and (bits != 8 or kind == "inverted"))
        or (wild == ["lowest_first"] and compression == "raw" and kind == ("inverted" if bits == 8 else "palette"))
    )


def is_refused_bmp(case):
    bits, kind, *wild = case
    # Pillow takes 4 bits for 8 where the palette is 0, 1, 2, ..., and 4 or 8 for 1 where it is black and white.
    return kind == "grey" and ((bits == 4 and wild != ["stretched"]) or (bits == 8 and wild == ["colours"]))


def ways_in(folder, contents):
    """Each way to read some files: its name, and what reads the file of a number."""
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
    rows = {"mask": [{"bytes": content, "path": None} for content in contents]}
    Dataset.from_dict(rows, features=Features({"mask": Image(decode=False)})).to_parquet(str(folder / "t.parquet"))
    table = Dataset.from_parquet(str(folder / "t.parquet"), cache_dir=str(folder / "cache"))["mask"]
    assert [row["bytes"] for row in table] == contents  # So what holds for bytes holds for rows of Parquet.

    def decoded(number):
        image = PILImage.open(folder / str(number))
        image.load()
        return image

    yield "file", lambda number: folder / str(number)
    yield "bytes", lambda number: contents[number]
    yield "PIL, from a file", lambda number: PILImage.open(folder / str(number))
    yield "PIL, from a file, decoded", decoded
    yield "PIL, from bytes", lambda number: PILImage.open(io.BytesIO(contents[number]))


def is_refused_pgm(case):
    return case[0] is None  # PBM, whose 1 is black: writers differ in which of the two they take for an id of 1


@pytest.mark.parametrize("kind", ["png", "tiff", "bmp", "pgm", "gif"])
def test_ids_are_the_numbers_that_the_file_stores(tmp_path, kind):
    is_refused = globals().get(f"is_refused_{kind}", lambda case: False)
    cases = [case for size in SIZES for case in globals()[f"{kind}_files"](size)]
    assert len(cases) > 40
    for way, source in ways_in(tmp_path, [content for _, _, content in cases]):
        for number, (case, ids, _) in enumerate(cases):
            try:
                read = load_class_ids(source(number))
            except (ValueError, OSError):  # InputError, or from Pillow where the test opens the file.
                read = None
            if read is None and (kind, way) == ("pgm", "PIL, from a file, decoded"):
                continue  # Pillow has stretched its numbers and does not say how far.
            assert (read is None) == is_refused(case), (way, case)
            if read is not None:
                assert read.dtype == np.int64
                assert np.array_equal(read, ids), (way, case)


def test_a_mask_from_an_address_is_read_as_its_file(served):
    folder, address = served
    cases = [*list(png_files((5, 7)))[::4], *list(bmp_files((5, 7)))[:2], *list(pgm_files((5, 7)))[2:4]]
    for case, ids, content in cases:
        (folder / "mask.png").write_bytes(content)
        np.testing.assert_array_equal(load_class_ids(f"{address}/mask.png"), ids, err_msg=str(case))
    (folder / "mask.png").write_bytes(jpeg())
    with pytest.raises(InputError, match=rf"^{address}/mask\.png .*JPEG"):
        load_class_ids(f"{address}/mask.png")


@pytest.mark.parametrize("order", ["<", ">"])
def test_twelve_bits(order):
    ids = draw((5, 8), 0, 4095)
    content = encoders.tiff(ids, 12, order=order)
    if order == ">":
        with pytest.raises(InputError, match="known format"):
            load_class_ids(content)
    else:
        np.testing.assert_array_equal(load_class_ids(content), ids)
        np.testing.assert_array_equal(np.asarray(load_rgb(content))[..., 0], np.rint(ids * 255 / 4095))


def test_a_16_bit_picture_in_which_0_is_white():
    values = draw((5, 8), 0, 65535)
    grey = np.asarray(load_rgb(encoders.tiff(values, 16, kind="inverted")))[..., 0]
    np.testing.assert_array_equal(grey, 255 - np.rint(values / 257))


def test_a_decoded_png_whose_file_is_gone(tmp_path):
    """What its values prove is read; what may have been stretched is refused."""
    for bits, values, fits in (
        (8, [0, 1, 34], True),
        (8, [0, 0, 0], True),
        (4, [0, 1, 2], False),
        (8, [0, 255], False),
    ):
        path = tmp_path / "mask.png"
        path.write_bytes(encoders.png(np.array([values]), bits))
        image = PILImage.open(path)
        image.load()
        path.unlink()
        if fits:
            assert load_class_ids(image).tolist() == [values]
        else:
            with pytest.raises(InputError, match="bits"):
                load_class_ids(image)


def test_a_decoded_picture_that_was_changed_is_not_read_for_its_file(tmp_path):
    (tmp_path / "mask.png").write_bytes(encoders.png(np.array([[0, 1, 2]]), 4))
    image = PILImage.open(tmp_path / "mask.png")
    image.putpixel((0, 0), 3)
    with pytest.raises(InputError, match="changed"):
        load_class_ids(image)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda ids: encoders.gif(ids, 8, screen=(20, 20)), "some of its pixels"),
        (lambda ids: encoders.tiff(ids, 8, extra_samples=1), "TIFF"),
        (lambda ids: encoders.tiff(ids, 8, kind="palette", extra_samples=1), "TIFF"),
        (lambda ids: encoders.tiff(ids, 32, floats=True), "mode is F"),
    ],
)
def test_other_files_are_refused(content, reason):
    with pytest.raises(InputError, match=reason):
        load_class_ids(content(draw((5, 7), 0, 200)))


@pytest.mark.parametrize("kind", ["SGI", "PCX", "TGA", "IM", "MSP", "XBM"])
def test_other_formats_are_refused_unless_every_case_is_known(kind):
    ids = draw((5, 7), 0, 1 if kind in ("MSP", "XBM") else 255).astype(np.uint8)
    image = PILImage.fromarray(ids * 255).convert("1") if kind in ("MSP", "XBM") else PILImage.fromarray(ids)
    file = io.BytesIO()
    image.save(file, kind)
    if kind in ("PCX", "TGA"):
        np.testing.assert_array_equal(load_class_ids(file.getvalue()), ids)
    else:
        with pytest.raises(InputError, match=f"format {kind}"):
            load_class_ids(file.getvalue())


def jpeg(kind="JPEG", **more):
    file = io.BytesIO()
    PILImage.fromarray(draw((16, 16), 0, 255).astype(np.uint8)).save(file, kind, **more)
    return file.getvalue()


LOSSY = {"JPEG": {}, "JPEG2000": {"irreversible": True}, "WEBP": {}, "TIFF": {"compression": "jpeg"}}
if features.check("avif"):  # From Pillow 11.3 on.
    LOSSY["AVIF"] = {}


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("way", ["file", "bytes", "PIL", "PIL, decoded"])
def test_the_content_tells_what_was_compressed_with_loss(tmp_path, kind, way):
    content = jpeg(kind, **LOSSY[kind])
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    source = {"file": path, "bytes": content}.get(way) or PILImage.open(path)
    if way == "PIL, decoded":
        source.load()
    with pytest.raises(InputError, match="changes class ids"):
        load_class_ids(source)


def test_a_name_like_that_of_a_jpeg_does_not_matter(tmp_path):
    ids = draw((5, 7), 0, 255)
    (tmp_path / "mask.jpg").write_bytes(encoders.png(ids, 8))
    np.testing.assert_array_equal(load_class_ids(tmp_path / "mask.jpg"), ids)


def test_encoders_write_what_they_should():
    """By the specifications, without Pillow."""
    content = encoders.png(np.array([[1, 2, 3]]), 4)
    start = content.index(b"IDAT") + 4
    assert zlib.decompress(content[start : content.index(b"IEND") - 8]) == b"\0\x12\x30"


@pytest.mark.parametrize("kind", ["tiff", "gif"])
def test_a_file_with_several_images_is_refused(tmp_path, kind):
    first, second = (PILImage.fromarray(np.full((4, 4), value, np.uint8)) for value in (1, 2))
    path = tmp_path / f"mask.{kind}"
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(InputError, match="2 images"):
        load_class_ids(path)
