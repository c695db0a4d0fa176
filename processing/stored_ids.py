"""
The numbers that a label map's file stores.

Pillow turns the numbers of some files into the grey values they are displayed as: it scales 1, 2 or 4 bits to 0..255,
and inverts numbers if 0 is white. Each format has a function here that finds out what Pillow did, so that it can be
undone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from .input_error import InputError

# Modes with one number per pixel, in which a label map may be stored.
_CLASS_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF", "WEBP")
"""Formats that may compress with loss, which changes numbers."""
_LOSSLESS_TIFF_COMPRESSIONS = (
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma",
    "zstd",
)  # fmt: skip


class StoredNumbers(NamedTuple):
    """
    How a file stores the number of a pixel that Pillow shows as a grey value.

    Attributes:
        bits: Bits per number; Pillow scales fewer than 8 to 0..255.
        inverted: Whether 0 is white, so that Pillow inverts numbers of up to 8 bits.
        signed: Whether numbers can be negative.
    """

    bits: int
    inverted: bool = False
    signed: bool = False


def find_stored_numbers(image: Image.Image, name: str) -> StoredNumbers | None:
    """
    How a label map's file stores its numbers; `None` if Pillow's values are the stored ones.

    Pillow forgets part of this when it decodes an image, so the file is opened again if it still exists.

    Args:
        image: Opened, decoded or not.
        name: Name of the file in error messages.

    Raises:
        InputError: If the file has colours or several images, may have been compressed with loss, or the stored
            numbers cannot be determined.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise _no_label_map(name, f"it contains {frames} images")
    if image.format in LOSSY_FORMATS:
        raise _no_label_map(name, f"{image.format} changes class ids when it compresses; use PNG")
    if image.mode not in _CLASS_ID_MODES:
        raise _no_label_map(name, f"its mode is {image.mode}, but class ids need a palette or one integer channel")
    if image.format is None:
        return None
    tiles = getattr(image, "tile", [])
    if tiles and sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in tiles) < image.width * image.height:
        raise _no_label_map(name, "the file stores only some of its pixels")
    if image.mode in _UNCHANGED_MODES.get(image.format, ()):
        return None
    return _FIND_BY_FORMAT.get(image.format, _refuse_format)(image, name)


def _find_in_png(image: Any, name: str) -> StoredNumbers:
    """Pillow scales grey values of 2 and 4 bits to 0..255; decoded, they look like 8-bit values."""
    header = _reopen(image)
    if header is not None:
        return StoredNumbers({"L;2": 2, "L;4": 4}.get(header.tile[0].args, 8))
    values = np.asarray(image)
    if values.any() and not (values % 17).any():  # 17 and 85 are the steps of scaled 4-bit and 2-bit values.
        raise _no_label_map(
            name, "its file may store 2, 4 or 8 bits; pass the file or its bytes instead of the decoded image"
        )
    return StoredNumbers(8)


def _find_in_bmp(image: Any, name: str) -> None:
    """
    Bits per pixel are read from the header: Pillow decides by the length of a grey palette whether there are 1 or 8,
    and unpacks the pixels wrongly if there are others.
    """
    header = _reopen(image)
    if header is not None:
        header.fp.seek(14)
        content = header.fp.read(16)
        start = 10 if content[0] == 12 else 14  # The oldest header has 12 bytes.
        if int.from_bytes(content[start : start + 2], "little") == (1 if image.mode == "1" else 8):
            return
    _refuse_format(image, name)


def _find_in_ppm(image: Any, name: str) -> None:
    """Pillow scales 0..maxval to 0..255 or 0..65535, except in the "raw" codec, where maxval is already that."""
    if image.mode == "1":
        raise _no_label_map(
            name, "in PBM files 1 is black, and programs disagree on whether the id is 1 or 0; use PNG"
        )
    header = _reopen(image)
    if header is not None:
        tile = header.tile[0]
        if tile.codec_name == "raw":
            return
        if header is image:  # Not decoded yet: with maxval set to the largest value, scaling changes nothing.
            image.tile = [tile._replace(args=(tile.args[0], 65535 if image.mode == "I" else 255))]
            return
    _refuse_format(image, name)


def _find_in_tiff(image: TiffImagePlugin.TiffImageFile, name: str) -> StoredNumbers | None:
    """The tags tell all; combinations that Pillow is known to decode wrongly are refused."""
    tags, compression = image.tag_v2, image.info["compression"]
    if compression not in _LOSSLESS_TIFF_COMPRESSIONS:
        raise _no_label_map(name, f"its compression {compression} changes class ids; use PNG")
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    sample_format = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    if compression == "raw":
        # Uncompressed planes are supported for 8 bits only.
        planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)
        supported = planes == 1 or (bits == 8 and photometric != 0)
    else:
        # Decompressed numbers have the machine's byte order, but Pillow swaps signed ones of a big-endian file again.
        supported = bits <= 8 or sample_format == 1 or tags.prefix == TiffImagePlugin.II
    if not supported or samples != 1 or photometric not in (0, 1, 3):
        raise _no_label_map(name, "the numbers stored in this kind of TIFF file cannot be determined; use PNG")
    if photometric == 3:
        return None
    return StoredNumbers(bits, inverted=photometric == 0, signed=sample_format == 2)


def _refuse_format(image: Image.Image, name: str) -> None:
    raise _no_label_map(
        name,
        f"the numbers stored in format {image.format} and mode {image.mode} cannot be determined; pass the path of a "
        "PNG file",
    )


# Modes in which Pillow's values are the stored numbers, whatever else the header says.
_UNCHANGED_MODES = {
    "PNG": ("1", "P", "I", "I;16"), "GIF": ("L", "P"), "BMP": ("P",), "TGA": ("L", "P"), "PCX": ("1", "L", "P"),
}  # fmt: skip
_FIND_BY_FORMAT: dict[str, Callable[[Any, str], StoredNumbers | None]] = {
    "PNG": _find_in_png,
    "BMP": _find_in_bmp,
    "PPM": _find_in_ppm,
    "TIFF": _find_in_tiff,
}


def _reopen(image: Any) -> Any:
    """The image before it was decoded, while it still knows how its pixels are stored; `None` without its file."""
    if image.tile:
        return image
    for file in filter(None, (getattr(image, "_fp", None), image.filename)):
        try:
            again = Image.open(file)
        except (OSError, ValueError, AttributeError):  # Deleted, closed or overwritten.
            continue
        if (again.format, again.mode, sorted(again.size)) == (image.format, image.mode, sorted(image.size)):
            return again
    return None


def restore_numbers(values: np.ndarray, stored: StoredNumbers, name: str) -> np.ndarray:
    """The numbers stored in the file, from Pillow's grey values."""
    if stored.bits == 32 and not stored.signed:
        return values.view(np.uint32)
    if stored.bits > 8:  # Pillow does not change these, even if 0 is white.
        return values
    largest = 2**stored.bits - 1
    if stored.bits < 8 and values.dtype != np.bool_:
        values, rest = np.divmod(values, 255 // largest)
        if rest.any():
            raise _no_label_map(name, "its pixels were changed after it was read from its file")
    if stored.inverted:
        return largest - values.astype(np.uint8)
    return values.view(np.int8) if stored.signed else values


def _no_label_map(name: str, reason: str) -> InputError:
    return InputError(f"{name} is not a label map: {reason}.")


__all__ = ["LOSSY_FORMATS", "StoredNumbers", "find_stored_numbers", "restore_numbers"]
