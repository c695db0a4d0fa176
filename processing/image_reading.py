"""Reading pictures and label maps: every file format, colour mode and broken file meets the program here."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import load_image

# Modes that hold one number per pixel, which a label map may therefore be stored in.
CLASS_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")

Source = str | Path | bytes | Image.Image


def load_rgb(picture: Source, timeout: float | None = None, name: str | None = None) -> Image.Image:
    """
    Reads a picture into upright 8-bit RGB, whatever it is stored as.

    - An EXIF orientation is applied.
    - Transparency (`RGBA`, `LA`, `PA`, a transparent palette entry or colour) is composited over white, as
      transformers' image processors do.
    - 16-bit grey becomes 8-bit over the full range: `round(value / 257)`.
    - Mode `I` (32-bit integers) is read as 16-bit if any value exceeds 255, else as 8-bit; mode `F` as 0..1 if no
      value exceeds 1, else as 0..255. Values outside the range are clipped.

    Args:
        picture: A path, an `http(s)` address, the bytes of a file or a PIL image.
        timeout: Seconds to wait for an address; `None` waits for ever.
        name: What errors call a picture that comes as bytes.

    Returns:
        A PIL image of mode `RGB`.

    Raises:
        ValueError: One sentence that names the file, where it is missing, empty, truncated, not a picture, in a mode
            that has no RGB form, or has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels (known from its header, before
            anything is decoded).
        MemoryError: One sentence that names the file, where there is no room for it.
    """
    name = on_one_line(name or _name(picture))
    image = _read_upright(picture, name, timeout)
    if image.mode == "P" and image.palette is None:
        raise ValueError(f"{name} has numbers of colours, but lacks its palette.")
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = _to_8_bit(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except MemoryError as error:
        raise _no_room(image, name) from error
    except ValueError as error:
        raise ValueError(f"{name} has colour mode {image.mode}, which cannot be turned into RGB.") from error


def load_class_ids(mask: Source, name: str | None = None) -> np.ndarray:
    """
    Reads a label map: one class id per pixel. Palette images give their indices, 16-bit images their values.

    Args:
        mask: A path, the bytes of a file or a PIL image.
        name: What errors call a mask that comes as bytes.

    Returns:
        `(height, width)` int64.

    Raises:
        ValueError: One sentence that names the file, where it cannot be read (see [`load_rgb`]) or holds colours.
    """
    name = on_one_line(name or _name(mask))
    image = _read_upright(mask, name)
    if image.mode not in CLASS_ID_MODES:
        raise ValueError(
            f"{name} is not a label map: its mode is {image.mode}, but class ids need a palette or one integer "
            "channel."
        )
    if name.lower().endswith((".jpg", ".jpeg")):
        raise ValueError(f"{name} is not a label map: JPEG changes class ids when it compresses; use PNG.")
    return np.asarray(image).astype(np.int64)


def read_frame(picture: str | Path | bytes, name: str | None = None) -> tuple[int, tuple[int, int]]:
    """
    Reads the frame that a picture or label map is stored in, of most formats from the header alone.

    Returns:
        Its EXIF orientation, 1 (upright) to 8, and width and height before that is applied.

    Raises:
        ValueError: One sentence that names the file, where it is missing, empty or not a picture.
    """
    image = _open(picture, on_one_line(name or _name(picture)))
    size = image.size
    orientation = image.getexif()[ExifTags.Base.Orientation] if _has_orientation(image) else 1
    if orientation not in range(1, 9):
        return 1, size
    # Of a TIFF file, Pillow gives the size that it has when it is turned.
    return orientation, size[::-1] if orientation >= 5 and image.format == "TIFF" else size


def read_palette(mask: str | Path | bytes, name: str | None = None) -> np.ndarray | None:
    """
    Reads the colours that a label map's file gives to its ids.

    Returns:
        `(ids, 3)` uint8; `None` where it has no palette, or one of greys that are the ids.
    """
    image = _open(mask, on_one_line(name or _name(mask)))
    colours = np.array((image.getpalette() if image.mode == "P" else None) or [], dtype=np.uint8).reshape(-1, 3)
    return None if np.array_equal(colours, np.arange(len(colours))[:, None].repeat(3, axis=1)) else colours


def _read_upright(source: Source, name: str, timeout: float | None = None) -> Image.Image:
    """Decodes the whole picture and applies its EXIF orientation."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            return load_image(source, timeout=timeout)
        except Exception as error:
            raise ValueError(f"The picture at {source} could not be fetched: {error}") from error
    if isinstance(source, (str, Path, bytes)):
        image = _open(source, name)
    elif isinstance(source, Image.Image):
        image = source
    else:
        raise TypeError(f"A picture is a path, an address or a PIL image, not a {type(source).__name__}.")
    try:
        image.load()
        return ImageOps.exif_transpose(image) if _has_orientation(image) else image
    except MemoryError as error:
        raise _no_room(image, name) from error
    except Exception as error:  # Each of PIL's decoders fails in its own way on a damaged file.
        raise ValueError(f"{name} is truncated or damaged: {error}") from error


def _has_orientation(image: Image.Image) -> bool:
    """EXIF data that nobody can read have none; the pixels are whole."""
    try:
        return ExifTags.Base.Orientation in image.getexif()
    except Exception:
        return False


def _open(file: str | Path | bytes, name: str) -> Image.Image:
    """Reads the header only."""
    if not isinstance(file, bytes) and not os.path.isfile(file):
        raise ValueError(f"There is no picture file {name}.")
    if (len(file) if isinstance(file, bytes) else os.path.getsize(file)) == 0:
        raise ValueError(f"{name} is empty (0 bytes).")
    try:
        image = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
        # PIL only warns between one and two times its limit.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} claims to have more than {Image.MAX_IMAGE_PIXELS} pixels, the limit against decompression bombs; "
            "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture in a known format.") from error
    except Exception as error:
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error


def _no_room(image: Image.Image, name: str) -> MemoryError:
    return MemoryError(f"There is not enough memory for {name}, which has {image.height} x {image.width} pixels.")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales a picture of mode `I;16*`, `I` or `F` to mode `L`."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        full_scale = 1.0 if values.max(initial=0) <= 1 else 255.0
    elif image.mode == "I":
        full_scale = 255.0 if values.max(initial=0) <= 255 else 65535.0
    else:
        full_scale = 65535.0
    grey = np.rint(values.clip(0, full_scale) * (255 / full_scale))
    return Image.fromarray(grey.astype(np.uint8))


def _name(source: Source) -> str:
    if isinstance(source, (bytes, Image.Image)):
        return getattr(source, "filename", "") or "The picture"
    return str(source)


def on_one_line(name: str) -> str:
    """Escapes what would break an error's line or steer a terminal: a file may be called anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


__all__ = ["load_class_ids", "load_rgb", "on_one_line", "read_frame", "read_palette"]
