"""
Segment a picture with a folder that `zegclip onnx MODEL FOLDER` wrote.

    pip install numpy onnxruntime pillow tokenizers
    python segment.py FOLDER picture.jpg --labels "cat/kitten, tree, sky" --output mask.png --overlay overlay.png

It needs neither zegclip nor PyTorch nor transformers, and gives the masks of zegclip's own pipeline with
`training_free_weight=0`. The functions can be copied: `encode_names` runs once for a list of names, whose embeddings
then serve any number of pictures. Slashes separate names of one class. A model without training compares names: give
some of what else is there.
"""

import argparse
import colorsys
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

NAMES_AT_A_TIME = 32
WINDOWS_AT_A_TIME = 8


def encode_names(folder: Path, settings: dict, names: list[str]) -> np.ndarray:
    """Return one embedding for each name, `(names, dim)` float32."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # what a name spells is text
    templates = settings["prompt_templates"]
    ids = [tokenizer.encode(template.replace("{}", name)).ids for name in names for template in templates]
    count = len(templates)
    known: dict[str, int] = {}
    for index, name in enumerate(names):
        first = known.setdefault(str(ids[index * count : (index + 1) * count]), index)
        if first != index:
            other = names[first]
            raise SystemExit(f"The names {other!r} and {name!r} are the same to the tokenizer: leave out one of them.")
    longest = max(map(len, ids))
    if longest > settings["context_length"]:
        raise SystemExit(f"A name is too long: {longest} tokens, but {settings['context_length']} are the most.")
    padded = np.full((len(ids), longest), settings["pad_token_id"], dtype=np.int64)
    for row, tokens in zip(padded, ids):
        row[: len(tokens)] = tokens
    padded = padded.reshape(len(names), len(templates), longest)
    session = onnxruntime.InferenceSession(folder / "text.onnx", providers=onnxruntime.get_available_providers())
    parts = [padded[start : start + NAMES_AT_A_TIME] for start in range(0, len(names), NAMES_AT_A_TIME)]
    return np.concatenate([session.run(None, {"input_ids": part})[0] for part in parts])


def prepare(picture: Image.Image, settings: dict) -> np.ndarray:
    """Resize and normalise an RGB picture: `(3, height, width)` float32."""
    size = settings["size"]
    width, height = picture.size
    if "shortest_edge" in size:
        scale = size["shortest_edge"] / min(height, width)
        if "longest_edge" in size:
            scale = min(scale, size["longest_edge"] / max(height, width))
        height, width = (max(int(side * scale + 0.5), 1) for side in (height, width))
    else:
        height, width = size["height"], size["width"]
    pixels = resize_8_bit(np.asarray(picture).transpose(2, 0, 1), height, width) * settings["rescale_factor"]
    mean, std = (np.array(settings[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    return ((pixels - mean) / std).astype(np.float32)


def resize_8_bit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `(channels, height, width)` uint8 bilinearly, with OpenCV's integers: as the model was trained."""

    def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        centres = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
        first = np.floor(centres)
        weights = [
            np.rint(part * np.float32(2048)).astype(np.int32) for part in (1 - (centres - first), centres - first)
        ]
        first = first.astype(np.int64)
        return first.clip(0, old - 1), (first + 1).clip(0, old - 1), *weights

    top, bottom, top_weight, bottom_weight = neighbours(image.shape[1], height)
    left, right, left_weight, right_weight = neighbours(image.shape[2], width)

    def columns(rows: np.ndarray) -> np.ndarray:
        pixels = image[:, rows].astype(np.int32)
        return (pixels[:, :, left] * left_weight + pixels[:, :, right] * right_weight) >> 4

    upper = (columns(top) * top_weight[:, None]) >> 16
    lower = (columns(bottom) * bottom_weight[:, None]) >> 16
    return ((upper + lower + 2) >> 2).clip(0, 255)


def resize_maps(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `(maps, height, width)` float32 bilinearly."""
    for axis, new in ((1, height), (2, width)):
        old = maps.shape[axis]
        centres = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, None)
        first = np.minimum(centres.astype(np.int64), old - 1)
        fraction = (centres - first).astype(np.float32)
        fraction = fraction[:, None] if axis == 1 else fraction
        here, there = (np.take(maps, index, axis) for index in (first, np.minimum(first + 1, old - 1)))
        maps = here * (1 - fraction) + there * fraction
    return maps


def windows(length: int, size: int | None, stride: int | None) -> list[tuple[int, int]]:
    """Return where windows begin and end along a side; the last one is shifted back so that it ends at the border."""
    if size is None:
        return [(0, length)]
    count = -(-max(length - size, 0) // (stride or size)) + 1
    ends = [min(index * (stride or size) + size, length) for index in range(count)]
    return [(max(end - size, 0), end) for end in ends]


def segment(
    session: onnxruntime.InferenceSession, settings: dict, embeds: np.ndarray, picture: Image.Image
) -> np.ndarray:
    """
    Return the index of the best name in every pixel, `(height, width)`.

    With a score function "sigmoid" the scores of overlapping windows are averaged, with "softmax" their logits, whose
    softmax over all names is the score; the best logit is then the best score.
    """
    pixels = prepare(picture, settings)
    height, width = pixels.shape[1:]
    cut = settings["window_size"], settings["window_stride"]
    boxes = [(*rows, *columns) for rows in windows(height, *cut) for columns in windows(width, *cut)]
    scores = np.zeros((len(embeds), height, width), dtype=np.float32)
    coverage = np.zeros((height, width), dtype=np.float32)
    for start in range(0, len(boxes), WINDOWS_AT_A_TIME):
        part = boxes[start : start + WINDOWS_AT_A_TIME]
        values = np.stack([pixels[:, top:bottom, left:right] for top, bottom, left, right in part])
        (logits,) = session.run(None, {"pixel_values": values, "class_embeds": embeds})
        if not np.isfinite(logits).all():
            raise SystemExit("The model's scores are NaN or infinite: its weights are damaged, or overflow.")
        for maps, (top, bottom, left, right) in zip(logits, part):
            maps = resize_maps(maps, bottom - top, right - left)
            if settings["score_function"] == "sigmoid":
                maps = 1 / (1 + np.exp(-maps))
            scores[:, top:bottom, left:right] += maps
            coverage[top:bottom, left:right] += 1
    scores /= coverage
    # A name at a time: all names' scores at the size of a large picture would need much memory.
    best = np.full((picture.height, picture.width), -np.inf, dtype=np.float32)
    mask = np.zeros(best.shape, dtype=np.int64)
    for index in range(len(scores)):
        (score,) = resize_maps(scores[index : index + 1], *best.shape)
        better = score > best
        mask[better], best[better] = index, score[better]
    return mask


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Segment a picture with ONNX files, without PyTorch.")
    parser.add_argument("folder", type=Path, help="made by `zegclip onnx MODEL FOLDER`")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--labels", required=True, help="classes with commas between them, at most 255")
    parser.add_argument("--output", type=Path, default=Path("mask.png"), help="index mask, PNG (default: %(default)s)")
    parser.add_argument("--overlay", type=Path, help="the picture with its classes in colour")
    arguments = parser.parse_args()
    classes = [[name.strip() for name in part.split("/")] for part in arguments.labels.replace("\n", ",").split(",")]
    names = [name for synonyms in classes for name in synonyms]
    class_of_name = np.array([index for index, synonyms in enumerate(classes) for _ in synonyms])
    if not all(names) or len(classes) > 255:
        parser.error("--labels needs 1 to 255 classes, whose names are not blank")
    if arguments.output.suffix.lower() != ".png":
        parser.error(f"--output must end with .png, not {arguments.output.suffix or 'without a suffix'}")
    if not (arguments.folder / "zegclip.json").is_file():
        parser.error(f"{arguments.folder} has no zegclip.json; make the folder with `zegclip onnx`")

    try:
        picture = ImageOps.exif_transpose(Image.open(arguments.picture))
    except OSError as error:
        parser.error(f"{arguments.picture} cannot be read as a picture: {error}")
    if picture.mode.startswith(("I", "F")):
        parser.error(f"{arguments.picture} has more than 8 bits for each colour: convert it to 8 bits first")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")

    settings = json.loads((arguments.folder / "zegclip.json").read_text(encoding="utf-8"))
    embeds = encode_names(arguments.folder, settings, names)
    session = onnxruntime.InferenceSession(
        arguments.folder / "vision.onnx", providers=onnxruntime.get_available_providers()
    )
    if settings["score_function"] == "softmax" and len(classes) == 1:
        parser.error("this model compares names, and a single class would win every pixel: give more --labels")
    mask = class_of_name[segment(session, settings, embeds, picture)]

    colours = np.array([colorsys.hsv_to_rgb(index * 0.618 % 1, 0.8, 0.9) for index in range(len(classes))])
    colours = (colours * 255).astype(np.uint8)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(colours.tobytes())
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    image.save(arguments.output)
    if arguments.overlay:
        arguments.overlay.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(picture, Image.fromarray(colours[mask]), 0.5).save(arguments.overlay)
    for index, (name, *_) in enumerate(classes):
        print(f"{name}: {100 * (mask == index).mean():.1f} %")


if __name__ == "__main__":
    main()
