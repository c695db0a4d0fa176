import re
import socket
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from zegclip.processing.image_reading import load_class_ids, load_colours, load_rgb
from zegclip.processing.input_error import InputError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def png_with_header(width, height, kind=2):
    """A PNG that claims any size in its header and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 0) + b"IDAT"


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 257 * 100 + 129, (101, 101, 101)),
        ("I", 200, (200, 200, 200)),
        ("I", 65535, (255, 255, 255)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 130.0, (130, 130, 130)),
    ],
)
def test_colour_modes(mode, color, expected):
    image = load_rgb(Image.new(mode, (3, 2), color))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", expected)


def warnings_of(*arguments):
    """What is said when a picture is read, and the picture."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = load_rgb(*arguments)
    return [str(warning.message) for warning in caught if warning.category is UserWarning], picture


@pytest.mark.parametrize(("largest", "said"), [(0, False), (255, True), (4095, True), (4096, False), (65535, False)])
def test_16_bits_that_are_almost_black_are_said(tmp_path, largest, said):
    """As from a camera of 12 bits, whose values would need another scale."""
    values = np.linspace(0, largest, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    messages, picture = warnings_of(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(picture)[..., 0], np.rint(values / 257))
    assert ["no value above 4095" in message for message in messages] == [True] * said
    Image.fromarray(values).save(tmp_path / "white.tiff", tiffinfo={262: 0})  # 0 is white
    assert warnings_of(tmp_path / "white.tiff")[0] == []


@pytest.mark.parametrize(("side", "warned"), [(6, True), (3, False)])
def test_of_a_stack_the_first_page_is_read(tmp_path, side, warned):
    """Later pages may be smaller versions of the first, as of a photograph or a scan."""
    path = tmp_path / "stack.tif"
    red, blue = (Image.new("RGB", (size, size), name) for size, name in ((6, "red"), (side, "blue")))
    red.save(path, save_all=True, append_images=[blue])
    messages, picture = warnings_of(path)
    assert (picture.size, picture.getpixel((2, 2))) == ((6, 6), (255, 0, 0))
    assert ["pages" in message for message in messages] == [True] * warned
    assert warnings_of(path.read_bytes())[0] == messages


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"two.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    messages, picture = warnings_of(tmp_path / f"two.{suffix}")
    assert np.asarray(picture)[0, 0].tolist() == [255, 0, 0]
    assert ["animation" in message for message in messages] == [True]
    frames[0].save(tmp_path / f"one.{suffix}", lossless=True)
    assert warnings_of(tmp_path / f"one.{suffix}")[0] == []


def test_a_damaged_second_frame_does_not_matter(tmp_path):
    frames = [Image.fromarray(NOISE), Image.new("RGB", (60, 40), "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "two.gif").read_bytes()
    cut = content[: content.rfind(b"\x21\xf9\x04") + 5]
    assert warnings_of(cut)[1].tobytes() == warnings_of(content)[1].tobytes()


def test_palette_with_and_without_transparency(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "transparent.png", transparency=1)
    assert np.asarray(load_rgb(tmp_path / "opaque.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.asarray(load_rgb(tmp_path / "transparent.png")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    upright = load_rgb(tmp_path / "turned.png")
    assert upright.size == ((60, 40) if orientation <= 4 else (40, 60))
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    assert upright.tobytes() == expected.tobytes()
    assert load_rgb(upright).tobytes() == upright.tobytes()  # and only once


@pytest.mark.parametrize("content", [b"MM\0*\0\0\0\x08\0\x05", b"MM\0*\0\0", b"?"])
def test_damaged_exif_data_are_ignored(tmp_path, content):
    Image.fromarray(NOISE).save(tmp_path / "odd.png", exif=b"Exif\0\0" + content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_rgb(tmp_path / "odd.png"), NOISE)


def write_bad_files(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "bomb.png").write_bytes(png_with_header(20000, 20000))
    (folder / "bomblet.png").write_bytes(png_with_header(10000, 10000))
    for suffix in ("png", "jpg"):
        Image.fromarray(NOISE).save(folder / f"whole.{suffix}")
        data = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("read", [load_rgb, load_class_ids])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "no picture file|404"),
        (".", "no picture file|known format"),
        ("empty.png", "empty"),
        ("text.jpg", "known format"),
        ("bomb.png", "decompression bombs"),
        ("bomblet.png", "decompression bombs"),
        ("truncated.png", "truncated"),
        ("truncated.jpg", "truncated"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_named(served, read, name, reason):
    folder, address = served
    write_bad_files(folder)
    sources = {f"{address}/{name}": f"{address}/{name}", str(folder / name): folder / name}
    if (folder / name).is_file():
        sources["picture 17"] = (folder / name).read_bytes()
    for expected, source in sources.items():
        with pytest.raises(InputError, match=reason) as error:
            read(source, name="picture 17" if isinstance(source, bytes) else None)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [load_rgb, load_class_ids])
def test_control_characters_of_a_name_are_escaped(tmp_path, read):
    name = "a\nb\x1b[2J\u2028é\udcff.png"
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/a\\nb\\x1b[2J\\u2028é\\udcff.png ")):
        read(tmp_path / name)


def test_a_palette_picture_without_a_palette(tmp_path):
    pixels = b"IDAT" + zlib.compress(b"\0\1\0\3")
    end = struct.pack(">I", zlib.crc32(pixels)) + bytes(4) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    content = png_with_header(1, 2, kind=3)[:-8] + struct.pack(">I", len(pixels) - 4) + pixels + end
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(InputError, match=r"picture\.png .*palette"):
        load_rgb(tmp_path / "picture.png")
    np.testing.assert_array_equal(load_class_ids(tmp_path / "picture.png"), [[1], [3]])


def test_bytes_and_addresses_give_the_same_as_their_file(served):
    folder, address = served
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    Image.fromarray(NOISE).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)).save(folder / "deep.png")
    palette.save(folder / "transparent.png", transparency=1)
    Image.fromarray(NOISE[..., 0].astype(np.float32) / 255).save(folder / "floats.tif")
    for name in ("turned.jpg", "deep.png", "transparent.png", "floats.tif"):
        expected = np.asarray(load_rgb(folder / name))
        for source in ((folder / name).read_bytes(), f"{address}/{name}"):
            np.testing.assert_array_equal(load_rgb(source, timeout=5), expected, err_msg=name)


@pytest.mark.parametrize("read", [load_rgb, load_class_ids])
def test_a_server_that_does_not_answer_ends_in_a_timeout(read):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match="fetched"):
            read(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png", timeout=0.1)


@pytest.mark.parametrize(
    "values",
    [
        np.float32([[-0.01, 0.5]]), np.float32([[np.nan, 0.5]]), np.float32([[0, 256]]), np.float32([[0.3, 1.003]]),
        np.float32([[np.inf, 0]]), np.int32([[-1, 3]]), np.int32([[0, 65536]]),
    ],
)  # fmt: skip
def test_values_that_are_not_grey_values_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(InputError, match=r"odd\.tif .*0\.\.255"):
        load_rgb(tmp_path / "odd.tif")


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="int"):
        load_rgb(3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_masks_with_colours_are_refused(tmp_path, mode):
    with pytest.raises(InputError, match=f"label map: .*{mode}"):
        load_class_ids(Image.new(mode, (2, 2)))
    if mode not in ("CMYK", "F"):
        Image.new(mode, (2, 2)).save(tmp_path / "mask.png")
        with pytest.raises(InputError, match=f"mask 3 .*{mode}"):
            load_class_ids((tmp_path / "mask.png").read_bytes(), name="mask 3")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_three_equal_channels_are_ids_only_where_that_is_asked_for(tmp_path, suffix):
    ids = NOISE[..., 0]
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(np.stack([ids] * 3, axis=-1)).save(path)
    assert np.array_equal(load_class_ids(path, equal_channels=True), ids)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_class_ids(path)


def write_16_bit_rgb(path, value):
    """A PNG that Pillow reads, but cannot write."""
    row = b"\0" + struct.pack(">HHH", value, value, value) * 4

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("kind", ["colours", "lossy", "16 bits"])
def test_other_channels_are_no_ids(tmp_path, kind):
    path = tmp_path / ("mask.jpg" if kind == "lossy" else "mask.png")
    if kind == "16 bits":
        write_16_bit_rgb(path, 3)
    else:
        Image.fromarray(NOISE if kind == "colours" else np.stack([NOISE[..., 0]] * 3, axis=-1)).save(path)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_class_ids(path, equal_channels=True)
    if kind == "16 bits":
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_colours(path)


def test_colours_are_those_that_are_stored(tmp_path):
    """Neither transparency nor a palette changes them, and they are upright."""
    path = tmp_path / "mask.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.zeros((*NOISE.shape[:2], 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([NOISE, alpha], axis=-1)).save(path, exif=exif)
    assert np.array_equal(load_colours(path), np.rot90(NOISE, -1))
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.save(path, transparency=0)
    assert load_colours(path).tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("step", ["load", "convert"])
def test_running_out_of_memory_is_not_called_a_damaged_file(tmp_path, monkeypatch, step):
    Image.new("L", (5, 4)).save(tmp_path / "picture.png")

    def no_room(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load" if step == "load" else "PIL.Image.Image.convert", no_room)
    with pytest.raises(MemoryError, match=r"picture\.png.* 4 x 5"):
        load_rgb(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_threads_refuse_what_pil_only_warns_of(tmp_path, monkeypatch):
    """Between one and two times its limit, and without changing Python's warning filters, which threads share."""
    Image.new("RGB", (15, 10)).save(tmp_path / "large.png")
    Image.new("RGB", (5, 10)).save(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    before = list(warnings.filters)

    def refused(number):
        load_rgb(tmp_path / "small.png")
        with pytest.raises(InputError, match="100 pixels"):
            load_rgb(tmp_path / "large.png")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(refused, range(400)))
    assert warnings.filters == before
