"""Reading pictures and label maps: every file format, colour mode and broken file meets the program here."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from .input_error import InputError

PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Files of a folder that are taken for pictures; a file that is named itself may be called anything."""

# Modes that hold one number per pixel, which a label map may therefore be stored in.
CLASS_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
# Formats that store colours; all of them mostly with loss.
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF", "WEBP")
# Of those that a TIFF file can have.
LOSSLESS_COMPRESSIONS = (
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma",
    "zstd",
)  # fmt: skip

TURNED = (
    "A picture in memory was turned upright by its EXIF orientation, so its map does not lie over the pixels of that "
    "PIL image; for one that does, give PIL.ImageOps.exif_transpose(picture) instead."
)
"""Warning."""

Source = str | Path | bytes | Image.Image


class StoredNumbers(NamedTuple):
    """
    How a file stores the number of a pixel, which Pillow shows as a grey value.

    Attributes:
        bits: For each number; Pillow stretches fewer than 8 over 0..255.
        inverted: Whether Pillow counts from the other end, as 0 is white.
        signed: Whether they can be negative.
    """

    bits: int
    inverted: bool = False
    signed: bool = False


# Where Pillow's numbers are the file's, whatever its header says.
_PLAIN = {
    "PNG": ("1", "P", "I", "I;16"), "GIF": ("L", "P"), "BMP": ("P",), "TGA": ("L", "P"), "PCX": ("1", "L", "P"),
}  # fmt: skip


def load_rgb(picture: Source, timeout: float | None = None, name: str | None = None) -> Image.Image:
    """
    Reads a picture into upright 8-bit RGB, whatever it is stored as and wherever it comes from.

    - An EXIF orientation is applied.
    - Transparency (`RGBA`, `LA`, `PA`, a transparent palette entry or colour) is composited over white, as
      transformers' image processors do.
    - 16-bit grey becomes 8-bit over the full range: `round(value / 257)`.
    - Other numbers (modes `I` and `F`) are read as [`to_8_bit`] says; in mode `I`, values above 255 are 16-bit.

    Args:
        picture: A path, an `http(s)` address, the bytes of a file or a PIL image.
        timeout: Seconds to wait for an address; `None` waits for ever.
        name: What errors call a picture that comes as bytes.

    Returns:
        A PIL image of mode `RGB`.

    Raises:
        InputError: One sentence that names the file, where it is missing, empty, truncated, not a picture, in a mode
            that has no RGB form, with values that are no grey values, or has more than `PIL.Image.MAX_IMAGE_PIXELS`
            pixels (known from its header, before anything is decoded).
        MemoryError: One sentence that names the file, where there is no room for it.
    """
    name = on_one_line(name or _name(picture))
    image = _read_upright(_open(picture, name, timeout), name)
    if image.mode == "P" and image.palette is None:
        raise InputError(f"{name} has numbers of colours, but lacks its palette.")
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_to_grey(image, name))
        return _to_rgb(image, name)
    except MemoryError as error:
        raise _no_room(image, name) from error


def load_upright(picture: Image.Image) -> Image.Image:
    """Decodes a picture and applies its EXIF orientation, in its own mode; errors are those of [`load_rgb`]."""
    return _read_upright(picture, on_one_line(_name(picture)))


def load_class_ids(mask: Source, name: str | None = None, timeout: float | None = None) -> np.ndarray:
    """
    Reads a label map: one class id per pixel. Ids are the numbers that the file stores, whatever grey or colour they
    stand for: indices of a palette, numbers of 1, 2, 4, 8, 16 or 32 bits, also where 0 is white.

    A PIL image that still knows its file's format is read by the same rules; any other, such as one made from an array
    or converted, holds ids as they are.

    Args:
        mask: A path, an `http(s)` address, the bytes of a file or a PIL image.
        name: What errors call a mask that comes as bytes.
        timeout: Seconds to wait for an address; `None` waits for ever.

    Returns:
        `(height, width)` int64.

    Raises:
        InputError: One sentence that names the file, where it cannot be read (see [`load_rgb`]), holds colours, may
            be compressed with loss, or where it is not sure which numbers it stores.
    """
    name = on_one_line(name or _name(mask))
    image = _open(mask, name, timeout)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise _no_label_map(name, f"it holds {frames} images, and it is not clear which is meant")
    try:
        stored = _find_numbers(image, name)
    except ValueError:
        _read_upright(image, name)  # That a file is damaged comes first.
        raise
    values = np.asarray(_read_upright(image, name))
    return (values if stored is None else _restore(values, stored, name)).astype(np.int64)


def read_frame(picture: str | Path | bytes, name: str | None = None) -> tuple[int, tuple[int, int]]:
    """
    Reads the frame that a picture or label map is stored in, of most formats from the header alone.

    Returns:
        Its EXIF orientation, 1 (upright) to 8, and width and height before that is applied.

    Raises:
        InputError: One sentence that names the file, where it is missing, empty or not a picture.
    """
    with _open(picture, on_one_line(name or _name(picture)), None) as image:
        orientation, height, width = exif_frame(image)
        # Of a TIFF file, Pillow gives the size that it has when it is turned.
        return orientation, (height, width) if orientation >= 5 and image.format == "TIFF" else (width, height)


def read_palette(mask: str | Path | bytes, name: str | None = None) -> np.ndarray | None:
    """
    Reads the colours that a label map's file gives to its ids.

    Returns:
        `(ids, 3)` uint8; `None` where it has no palette, or one of greys that are the ids.
    """
    with _open(mask, on_one_line(name or _name(mask)), None) as image:
        colours = np.array((image.getpalette() if image.mode == "P" else None) or [], dtype=np.uint8).reshape(-1, 3)
    return None if np.array_equal(colours, np.arange(len(colours))[:, None].repeat(3, axis=1)) else colours


def to_8_bit(values: np.ndarray, name: str = "The picture") -> np.ndarray:
    """
    Understands the numbers of a picture as grey values or colours of 8 bits.

    - uint8 is left as it is, boolean becomes 0 and 255.
    - Other integers are 0..255; in uint16, where any exceeds 255, they are 16-bit over the full range.
    - Floats are 0..1 (as torchvision's `ToTensor` gives them) where none exceeds 1, else 0..255; they are rounded.

    So a picture of 0..255 without any value above 1 is read as 0..1: give such a one as uint8.

    Args:
        values: Of any shape.
        name: What errors call it.

    Returns:
        uint8 of the same shape.

    Raises:
        InputError: One sentence, if values are negative, too large or no numbers. Also for fractions of which the
            largest lies between 1 and 8: they may be slightly above 0..1, or a black picture of 0..255.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise InputError(f"{name} holds {values.dtype}, which are no colours.")
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if values.dtype.kind == "f":
        full_scale = 1.0 if highest <= 1 else 255.0
    else:
        full_scale = 65535.0 if values.dtype == np.uint16 and highest > 255 else 255.0
    fits = lowest >= 0 and highest <= full_scale  # Not for NaN, with which no comparison holds.
    if not fits or (values.dtype.kind == "f" and 1 < highest < 8 and np.any(values % 1)):
        raise InputError(
            f"{name} has {values.dtype} values from {lowest} to {highest}, which are neither 0..1 nor 0..255: scale "
            "or clip them first."
        )
    scaled = values.astype(np.promote_types(values.dtype, np.float32)) * (255 / full_scale)
    return np.rint(scaled).astype(np.uint8)


def exif_frame(image: Image.Image) -> tuple[int, int, int]:
    """Tell a decoded picture's EXIF orientation, 1..8, and height and width of its pixels before it is applied."""
    orientation = image.getexif()[ExifTags.Base.Orientation] if _has_orientation(image) else 1
    return orientation if orientation in range(1, 9) else 1, image.height, image.width


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(f"{name} has colour mode {image.mode}, which cannot be turned into RGB.") from error


def _to_grey(image: Image.Image, name: str) -> np.ndarray:
    """The values of mode `I;16*`, `I` or `F` as uint8."""
    values = np.asarray(image)
    largest, inverted = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # What Pillow leaves to others: 12 bits are not stretched, and 0 stays 0 where it is white.
        largest = 4095 if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if image.mode == "I":
        fits = values.min(initial=0) >= 0 and values.max(initial=0) <= 65535
        values = values.astype(np.uint16) if fits else values
    elif image.mode != "F":
        values = np.rint(values * (255 / largest)).astype(np.uint8)
    grey = to_8_bit(values, name)
    return 255 - grey if inverted else grey


def _find_numbers(image: Image.Image, name: str) -> StoredNumbers | None:
    """
    Tells how a label map's file stores its numbers; `None` for as Pillow shows them.

    Of a decoded image, Pillow has forgotten part of this, so its file is looked up where it still is.
    """
    if image.format in LOSSY_FORMATS:
        raise _no_label_map(name, f"{image.format} changes class ids when it compresses; use PNG")
    if image.mode not in CLASS_ID_MODES:
        raise _no_label_map(name, f"its mode is {image.mode}, but class ids need a palette or one integer channel")
    if image.format is None:
        return None
    tiles = getattr(image, "tile", [])
    if tiles and sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in tiles) < image.width * image.height:
        raise _no_label_map(name, "the file holds only some of its pixels")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _find_tiff_numbers(image, name)
    if image.mode in _PLAIN.get(image.format, ()):
        return None
    if (image.format, image.mode) == ("PPM", "1"):
        raise _no_label_map(name, "PBM stores 1 for black, so it is not clear whether 1 or 0 is meant; use PNG")
    if image.format == "PNG":
        return _find_png_numbers(image, name)
    header = _open_again(image)
    if image.format == "BMP" and header is not None and _bmp_bits(header) == (1 if image.mode == "1" else 8):
        return None
    if image.format == "PPM" and header is not None:
        tile = header.tile[0]
        if tile.codec_name == "raw":
            return None
        if header is image:
            # Pillow stretches 0..maxval over its own range; told that maxval is the end of that, it changes nothing.
            image.tile = [tile._replace(args=(tile.args[0], 65535 if image.mode == "I" else 255))]
            return None
    raise _no_label_map(
        name,
        f"of the format {image.format} in mode {image.mode} it is not sure here which numbers it stores; give the "
        "path of a PNG file",
    )


def _find_png_numbers(image: Image.Image, name: str) -> StoredNumbers:
    header = _open_again(image)
    if header is not None:
        return StoredNumbers({"L;2": 2, "L;4": 4}.get(header.tile[0].args, 8))
    values = np.asarray(image)
    if values.any() and not (values % 17).any():
        raise _no_label_map(
            name,
            "its file can have held these values, or those of 2 or 4 bits; give the file or its bytes instead of the "
            "decoded image",
        )
    return StoredNumbers(8)


def _find_tiff_numbers(image: TiffImagePlugin.TiffImageFile, name: str) -> StoredNumbers | None:
    tags, compression = image.tag_v2, image.info["compression"]
    if compression not in LOSSLESS_COMPRESSIONS:
        raise _no_label_map(name, f"its compression {compression} changes class ids; use PNG")
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    sample_format = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    if compression == "raw":
        # Of uncompressed planes, Pillow knows 8 bits alone.
        planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)
        understood = planes == 1 or (bits == 8 and photometric != 0)
    else:
        # It takes decompressed numbers for big-endian where the file is, but only unsigned ones are.
        understood = bits <= 8 or sample_format == 1 or tags.prefix == TiffImagePlugin.II
    if not understood or samples != 1 or photometric not in (0, 1, 3):
        raise _no_label_map(name, "it is not sure here which numbers this kind of TIFF file stores; use PNG")
    if photometric == 3:
        return None
    return StoredNumbers(bits, inverted=photometric == 0, signed=sample_format == 2)


def _bmp_bits(header: Any) -> int:
    """Bits for each pixel; Pillow takes a grey palette for 1 or 8 of them, by its length alone."""
    header.fp.seek(14)
    content = header.fp.read(16)
    start = 10 if content[0] == 12 else 14  # of the oldest kind of header, of all others
    return int.from_bytes(content[start : start + 2], "little")


def _open_again(image: Any) -> Any:
    """The image before it was decoded, when it still says how its pixels are stored; `None` if its file is gone."""
    if image.tile:
        return image
    for file in filter(None, (getattr(image, "_fp", None), image.filename)):
        try:
            again = Image.open(file)
        except (OSError, ValueError, AttributeError):  # It is gone, closed, or no picture by now.
            continue
        if (again.format, again.mode, sorted(again.size)) == (image.format, image.mode, sorted(image.size)):
            return again
    return None


def _restore(values: np.ndarray, stored: StoredNumbers, name: str) -> np.ndarray:
    """Undoes what Pillow makes of a file's numbers."""
    if stored.bits == 32 and not stored.signed:
        return values.view(np.uint32)
    if stored.bits > 8:  # These are left as they are, also where 0 is white.
        return values
    largest = 2**stored.bits - 1
    if stored.bits < 8 and values.dtype != np.bool_:
        values, rest = np.divmod(values, 255 // largest)
        if rest.any():
            raise _no_label_map(name, "its pixels have been changed since it was read from its file")
    if stored.inverted:
        return largest - values.astype(np.uint8)
    return values.view(np.int8) if stored.signed else values


def _read_upright(image: Image.Image, name: str) -> Image.Image:
    """Decodes the whole picture and applies its EXIF orientation."""
    try:
        image.load()
        return ImageOps.exif_transpose(image) if _has_orientation(image) else image
    except MemoryError as error:
        raise _no_room(image, name) from error
    except Exception as error:  # Each of PIL's decoders fails in its own way on a damaged file.
        raise InputError(f"{name} is truncated or damaged: {error}") from error


def _has_orientation(image: Image.Image) -> bool:
    """EXIF data that nobody can read have none; the pixels are whole."""
    try:
        return ExifTags.Base.Orientation in image.getexif()
    except Exception:
        return False


def _open(source: Source, name: str, timeout: float | None) -> Image.Image:
    """Reads the header only, of what is not a picture already."""
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, Path, bytes)):
        raise TypeError(f"A picture is a path, an address or a PIL image, not a {type(source).__name__}.")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = _fetch(source, name, timeout)
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise InputError(f"There is no picture file {name}.")
    if (len(source) if isinstance(source, bytes) else os.path.getsize(source)) == 0:
        raise InputError(f"{name} is empty (0 bytes).")
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        # PIL only warns between one and two times its limit.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name} claims to have more than {Image.MAX_IMAGE_PIXELS} pixels, the limit against decompression bombs; "
            "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture in a known format.") from error
    except Exception as error:
        raise InputError(f"{name} cannot be read as a picture: {error}") from error


def _fetch(address: str, name: str, timeout: float | None) -> bytes:
    try:
        response = httpx.get(address, timeout=timeout, follow_redirects=True)
        response.raise_for_status()
        return response.content
    except Exception as error:
        raise InputError(f"The picture at {name} could not be fetched: {on_one_line(str(error))}") from error


def _no_label_map(name: str, reason: str) -> InputError:
    return InputError(f"{name} is not a label map: {reason}.")


def _no_room(image: Image.Image, name: str) -> MemoryError:
    return MemoryError(f"There is not enough memory for {name}, which has {image.height} x {image.width} pixels.")


def _name(source: Source) -> str:
    if isinstance(source, (bytes, Image.Image)):
        return getattr(source, "filename", "") or "The picture"
    return str(source)


def on_one_line(name: str) -> str:
    """Escapes what would break an error's line or steer a terminal: a file may be called anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


__all__ = [
    "PICTURE_SUFFIXES",
    "TURNED",
    "exif_frame",
    "load_class_ids",
    "load_rgb",
    "load_upright",
    "on_one_line",
    "read_frame",
    "read_palette",
    "to_8_bit",
]
