"""Reading pictures and label maps: the one place that handles file formats, colour modes and damaged files."""

import base64
import itertools
import os
import warnings
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from .input_error import InputError
from .stored_ids import LOSSY_FORMATS, find_stored_numbers, restore_numbers

PICTURE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Suffixes of the files in a folder that count as pictures; a file given by its own name may have any."""

UNREAD_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw",
)  # fmt: skip
"""Suffixes of pictures, as from phones and cameras, that Pillow does not read."""


def is_picture(name: str) -> bool:
    """Return whether a file in a folder counts as a picture, by its name; hidden ones do not."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")


def find_unread(names: Iterable[str]) -> list[str]:
    """Return the names of pictures in a folder that are not read, and not there in another format as well."""
    names = [name for name in names if not name.startswith(".")]
    stems = {os.path.splitext(name)[0] for name in names if is_picture(name)}
    unread = (name for name in names if name.lower().endswith(UNREAD_SUFFIXES))
    return sorted(name for name in unread if os.path.splitext(name)[0] not in stems)


EXIF_WARNING = (
    "A PIL image was rotated or flipped by its EXIF orientation, so its map may not align with the pixels of that "
    "image: pass PIL.ImageOps.exif_transpose(picture) instead."
)
"""Warning about a PIL image with an EXIF orientation."""

# A path may be as long; a text of that length is rather the picture itself.
_LONGEST_NAME = 1000

Source = str | Path | bytes | Image.Image


def load_rgb(picture: Source, timeout: float | None = None, name: str | None = None) -> Image.Image:
    """
    Read a picture from any source and in any mode as upright 8-bit RGB.

    - The EXIF orientation is applied.
    - Transparency (`RGBA`, `LA`, `PA`, a transparent palette entry or colour) is composited over white, as in
      transformers' image processors.
    - 16-bit grey is converted to 8 bits over the full range: `round(value / 257)`, with a warning if no value is above
      4095, as from a camera of 12 bits.
    - Modes `I` and `F` are read as described in [`to_8_bit`]; in mode `I`, values above 255 are 16-bit.
    - Of a file's frames, the first is read, with a warning if it is an animation or a TIFF file with several pages of
      one size; of a PIL image the present one.

    Args:
        picture: A path, an `http(s)` URL, a file as bytes or as a base64 string, or a PIL image.
        timeout: Seconds to wait for a URL; `None` for no limit.
        name: Name of the picture in error messages, if it is given as bytes.

    Returns:
        A PIL image of mode `RGB`; one that is upright RGB already is returned as it is.

    Raises:
        InputError: If the file is missing, empty, truncated or not a picture, its mode cannot be converted to RGB, its
            values are not grey values, or it has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels (checked in the header,
            before anything is decoded). The message names the file.
        MemoryError: If there is not enough memory for the picture.
    """
    name = _name(picture, name)
    opened = _open(picture, name, timeout)
    if not isinstance(picture, Image.Image) and _is_stack(opened):
        warnings.warn("A picture has several pages of one size: the first one is read.", stacklevel=2)
    image = _decode_upright(opened, name)
    if not isinstance(picture, Image.Image) and _is_animation(opened):
        warnings.warn("A picture is an animation: its first frame is read.", stacklevel=2)
    if image.mode == "P" and image.palette is None:
        raise InputError(f"{name} stores palette indices, but has no palette.")
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_to_grey(image, name))
        return _to_rgb(image, name)
    except MemoryError as error:
        raise _out_of_memory(image, name) from error


def load_upright(picture: Image.Image) -> Image.Image:
    """Decode a picture and apply its EXIF orientation, without changing its mode. Raises as [`load_rgb`]."""
    return _decode_upright(picture, _name(picture))


def load_class_ids(
    mask: Source, name: str | None = None, timeout: float | None = None, *, equal_channels: bool = False
) -> np.ndarray:
    """
    Read a label map: one class id per pixel. The ids are the numbers stored in the file, whatever grey value or
    colour they are displayed as: palette indices, or integers of 1, 2, 4, 8, 16 or 32 bits, also where 0 is white.

    A PIL image that still knows its file's format is read by the same rules. In any other, for instance one made from
    an array, the pixel values are the ids.

    Args:
        mask: A path, an `http(s)` URL, the bytes of a file or a PIL image.
        name: Name of the mask in error messages, if it is given as bytes.
        timeout: Seconds to wait for a URL; `None` for no limit.
        equal_channels: Whether three channels that are the same in all pixels are read as ids too.

    Returns:
        `(height, width)` int64.

    Raises:
        InputError: If the file cannot be read (see [`load_rgb`]), has colours or several images, may have been
            compressed with loss, or the stored numbers cannot be determined. The message names the file.
    """
    name = _name(mask, name)
    image = _open(mask, name, timeout)
    equal_channels = equal_channels and image.format not in LOSSY_FORMATS and not _has_16_bits(image)
    try:
        stored = find_stored_numbers(image, name)
    except InputError:
        image = _decode_upright(image, name)  # If the file is damaged as well, that error takes precedence.
        if equal_channels and image.mode in ("LA", "RGB", "RGBA"):
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
            if np.array_equal(red, green) and np.array_equal(red, blue):
                return red.astype(np.int64)
        raise
    values = np.asarray(_decode_upright(image, name))
    return (values if stored is None else restore_numbers(values, stored, name)).astype(np.int64)


def load_colours(mask: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """
    Read a label map whose classes are colours. A pixel has the colour that is stored, however transparent it is.

    Args:
        mask: A path or the bytes of a file.
        name: Name of the mask in error messages, if it is given as bytes.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        InputError: If the file cannot be read (see [`load_rgb`]) or has no 8-bit colours. The message names the file.
    """
    name = _name(mask, name)
    image = _open(mask, name, None)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX") or _has_16_bits(image):
        raise InputError(f"{name} has colour mode {image.mode}, but classes that are colours need 8-bit RGB.")
    return np.asarray(_decode_upright(image, name).convert("RGB"))


def load_alpha(mask: str | Path | bytes, name: str | None = None) -> np.ndarray | None:
    """Read the opacity of a stored label map, `(height, width)` uint8; `None` if it has none."""
    name = _name(mask, name)
    image = _open(mask, name, None)
    if not image.has_transparency_data:
        return None
    return np.asarray(_decode_upright(image, name).convert("RGBA").getchannel("A"))


def read_frame(picture: str | Path | bytes, name: str | None = None) -> tuple[int, tuple[int, int]]:
    """
    Read orientation and size of a stored picture or label map, for most formats from the header alone.

    Returns:
        The EXIF orientation, 1 (upright) to 8, and `(width, height)` before it is applied.

    Raises:
        InputError: If the file is missing, empty or not a picture. The message names the file.
    """
    with _open(picture, _name(picture, name), None) as image:
        orientation, height, width = exif_frame(image)
        # For TIFF files, Pillow reports the size after the rotation.
        return orientation, (height, width) if orientation >= 5 and image.format == "TIFF" else (width, height)


def read_palette(mask: str | Path | bytes, name: str | None = None) -> np.ndarray | None:
    """
    Read the palette of a label map's file.

    Returns:
        `(ids, 3)` uint8; `None` without a palette, and for the grey palette whose values are the ids.
    """
    with _open(mask, _name(mask, name), None) as image:
        colours = np.array((image.getpalette() if image.mode == "P" else None) or [], dtype=np.uint8).reshape(-1, 3)
    return None if np.array_equal(colours, np.arange(len(colours))[:, None].repeat(3, axis=1)) else colours


def read_storage(mask: str | Path | bytes, name: str | None = None) -> tuple[str, bool]:
    """Read the colour mode of a stored label map, and whether its format may compress with loss."""
    with _open(mask, _name(mask, name), None) as image:
        return image.mode, image.format in LOSSY_FORMATS


def exif_frame(image: Image.Image) -> tuple[int, int, int]:
    """EXIF orientation, 1..8, of a decoded picture, and height and width of its pixels before it is applied."""
    orientation = image.getexif()[ExifTags.Base.Orientation] if _has_orientation(image) else 1
    return orientation if orientation in range(1, 9) else 1, image.height, image.width


def to_8_bit(values: np.ndarray, name: str = "The picture") -> np.ndarray:
    """
    Convert grey values or colours of any number type to 8 bits.

    - uint8 is returned unchanged, booleans become 0 and 255.
    - Other integers are in 0..255; uint16 is in 0..65535 if any value exceeds 255.
    - Floats are in 0..1 (as from torchvision's `ToTensor`) if none exceeds 1, otherwise in 0..255; they are rounded.

    An almost black picture in 0..255 without any value above 1 is therefore read as 0..1: pass it as uint8.

    Args:
        values: Of any shape.
        name: Name of the picture in error messages.

    Returns:
        uint8 of the same shape.

    Raises:
        InputError: If values are negative, too large or not numbers, or if there are fractions and the largest is
            between 1 and 8: they may be slightly above 0..1, or a dark picture in 0..255.
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
    if full_scale == 65535:
        _warn_of_fewer_bits(values)
    fits = lowest >= 0 and highest <= full_scale  # False for NaN.
    if not fits or (values.dtype.kind == "f" and 1 < highest < 8 and np.any(values % 1)):
        raise InputError(
            f"{name} has {values.dtype} values from {lowest} to {highest}, which are neither 0..1 nor 0..255: scale "
            "or clip them first."
        )
    scaled = values.astype(np.promote_types(values.dtype, np.float32)) * (255 / full_scale)
    return np.rint(scaled).astype(np.uint8)


def _warn_of_fewer_bits(values: np.ndarray) -> None:
    """Warn of 16-bit grey values that are almost black, as a 12-bit camera's; without a name, so it is said once."""
    if 0 < values.max(initial=0) < 2**12:
        warnings.warn(
            "A picture of 16 bits has no value above 4095, so it is read as almost black: if it has fewer bits, scale "
            "it to 0..65535.",
            stacklevel=2,
        )


def _is_animation(image: Image.Image) -> bool:
    """Whether a decoded picture's file has several frames; those of MPO are previews, for TIFF see [`_is_stack`]."""
    try:
        return image.format in ("GIF", "PNG", "WEBP", "AVIF") and bool(getattr(image, "is_animated", False))
    except Exception:  # Of many types, for a damaged second frame: the first one is intact.
        return False


def _is_stack(image: Image.Image) -> bool:
    """Whether an opened TIFF file has a second page of the first one's size, not just smaller versions of it."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    source = image.fp if isinstance(image.fp, BytesIO) else None
    try:
        # Another object, as a damaged second page would change what is known of the first.
        with Image.open(BytesIO(source.getvalue()) if source else image.filename) as pages:
            for page in itertools.count(1):
                pages.seek(page)
                if pages.size == image.size:
                    return True
    except Exception:  # Of many types: the last page was read, or one is damaged.
        return False
    return False


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise InputError(f"{name} has colour mode {image.mode}, which cannot be converted to RGB.") from error


def _to_grey(image: Image.Image, name: str) -> np.ndarray:
    """The values of mode `I;16*`, `I` or `F` as uint8."""
    values = np.asarray(image)
    largest, inverted = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow neither scales 12 bits to the full range nor inverts values if 0 is white.
        largest = 4095 if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if image.mode == "I":
        fits = values.min(initial=0) >= 0 and values.max(initial=0) <= 65535
        values = values.astype(np.uint16) if fits else values
    elif image.mode != "F":
        if largest == 65535 and not inverted:
            _warn_of_fewer_bits(values)
        values = np.rint(values * (255 / largest)).astype(np.uint8)
    grey = to_8_bit(values, name)
    return 255 - grey if inverted else grey


def _decode_upright(image: Image.Image, name: str) -> Image.Image:
    """Decode all pixels and apply the EXIF orientation."""
    try:
        image.load()
        return ImageOps.exif_transpose(image) if _has_orientation(image) else image
    except MemoryError as error:
        raise _out_of_memory(image, name) from error
    except Exception as error:  # Pillow's decoders raise errors of many types for a damaged file.
        raise InputError(f"{name} is truncated or damaged: {error}") from error


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether channels have 16 bits each, of which Pillow keeps 8 in colours."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    return any("16" in str(argument[0] if isinstance(argument, tuple) else argument) for argument in arguments)


def _has_orientation(image: Image.Image) -> bool:
    try:
        return ExifTags.Base.Orientation in image.getexif()
    except Exception:  # Damaged EXIF data are ignored: the pixels are intact.
        return False


def _open(source: Source, name: str, timeout: float | None) -> Image.Image:
    """Open a source and read its header; a PIL image is returned as it is."""
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, Path, bytes)):
        raise TypeError(f"A picture is a path, URL or PIL image, not {type(source).__name__}.")
    if isinstance(source, str) and is_url(source):
        source = _fetch(source, name, timeout)
    if isinstance(source, str) and not os.path.isfile(source):
        source = _decode_base64(source) or source
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise InputError(f"There is no picture file {name}.")
    if (len(source) if isinstance(source, bytes) else os.path.getsize(source)) == 0:
        raise InputError(f"{name} is empty (0 bytes).")
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        # Pillow raises an error only above twice its limit, and a warning below.
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
    except Exception as error:  # As above: of many types.
        raise InputError(f"{name} cannot be read as a picture: {error}") from error


def _decode_base64(text: str) -> bytes | None:
    """Return the bytes of a picture file that is given as base64, with or without `data:` prefix; else `None`."""
    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text)
        Image.open(BytesIO(content)).close()  # Many a file name is valid base64.
    except Exception:
        return None
    return content


def _fetch(url: str, name: str, timeout: float | None) -> bytes:
    try:
        response = httpx.get(url, timeout=timeout, follow_redirects=True)
        response.raise_for_status()
        return response.content
    except Exception as error:
        raise InputError(f"The picture at {name} could not be fetched: {on_one_line(str(error))}") from error


def _out_of_memory(image: Image.Image, name: str) -> MemoryError:
    return MemoryError(f"There is not enough memory for {name}, which has {image.height} x {image.width} pixels.")


def _name(source: Source, name: str | None = None) -> str:
    """How error messages call a source."""
    if name is None:
        in_memory = isinstance(source, (bytes, Image.Image))
        name = (getattr(source, "filename", "") or "The picture") if in_memory else str(source)
    name = on_one_line(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[:40]}... ({len(name)} characters)"


def is_url(text: str) -> bool:
    """Return whether a picture's name is a URL, to be fetched."""
    return text.startswith(("http://", "https://"))


def on_one_line(text: str) -> str:
    """Escape line breaks and control characters, which would break a message or control a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


__all__ = [
    "EXIF_WARNING",
    "PICTURE_SUFFIXES",
    "exif_frame",
    "load_alpha",
    "load_class_ids",
    "load_colours",
    "load_rgb",
    "load_upright",
    "on_one_line",
    "read_frame",
    "read_palette",
    "read_storage",
    "to_8_bit",
]
