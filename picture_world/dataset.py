"""The picture world as a Hugging Face data set, in memory, as a stream, or as a folder of files."""

import argparse
import colorsys
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, Value
from PIL import Image as PILImage
from tqdm import tqdm

from zegclip.processing.input_error import InputError

from .captions import caption
from .classes import CLASS_NAMES, UNSEEN_TEST, UNSEEN_TUNING, class_ids
from .drawing import draw_scene
from .pools import PoolName

Split = Literal["train", "tuning", "test"]
EvalSplit = Literal["tuning", "test"]

FEATURES = Features({"image": Image(), "mask": Image(), "caption": Value("string")})

# Each split has a pool of drawing parameters and its own range of seeds; pretraining has another range.
_POOLS: dict[Split, PoolName] = {"train": "train", "tuning": "train", "test": "test"}
_FIRST_SEEDS: dict[Split, int] = {"train": 0, "tuning": 1 << 62, "test": 0}
_SCENES_PER_SEED = 1 << 40
_MOST_SEEDS = 1 << 20
# The largest number of workers or processes that can share a stream.
_SHARDS = 16


def scene_seeds(split: Split, seed: int = 0) -> range:
    """Return the scene seeds of a split for a data set's seed; the ranges within a pool are disjoint."""
    if split not in get_args(Split):
        raise InputError(f"Unknown split {split!r}: choose from {', '.join(get_args(Split))}.")
    if not 0 <= seed < _MOST_SEEDS:
        raise InputError(f"The seed of a picture world must be between 0 and {_MOST_SEEDS - 1}, got {seed}.")
    first = _FIRST_SEEDS[split] + seed * _SCENES_PER_SEED
    return range(first, first + _SCENES_PER_SEED)


def draw_example(
    split: Split, scene_seed: int, eval_split: EvalSplit = "test", unseen: Sequence[str] | None = None
) -> dict[str, Any]:
    """Draw one row: `image` (RGB), `mask` (mode L, class ids), `caption`; see `load_picture_world`."""
    if (split, eval_split) == ("test", "tuning"):
        raise InputError("Scenes of the split 'test' are for eval_split 'test'.")
    tuning = "tuning" in (split, eval_split)
    if unseen is None:
        unseen = UNSEEN_TUNING if tuning else UNSEEN_TEST
    rare = class_ids(unseen) if split == "train" else []
    scene = draw_scene(scene_seed, _POOLS[split], rare=rare, absent=class_ids(UNSEEN_TEST) if tuning else [])
    return {
        "image": scene.image,
        "mask": scene.mask,
        "caption": caption(scene, np.random.default_rng([scene_seed, 1])),
    }


def load_picture_world(
    split: Split,
    num_scenes: int | None,
    seed: int = 0,
    streaming: bool = False,
    *,
    eval_split: EvalSplit = "test",
    unseen: Sequence[str] | None = None,
) -> Dataset | IterableDataset:
    """Draw scenes of the picture world as a data set.

    Masks contain the ids of all classes, also of unseen ones.

    Args:
        split: "train" and "tuning" share drawing parameters but no scene; "test" has parameters of its own.
        num_scenes: number of scenes; None for an endless stream.
        seed: selects the scenes of the split, below 2**20.
        streaming: whether to draw while iterating. A finite stream yields the same rows in the same order as the data
            set in memory; an endless one has 16 shards with different scenes, for workers and processes.
        eval_split: what is evaluated after training on the split "train". Its unseen classes occur a quarter as often
            as others in training scenes, so that most pixels have a label. No scene for or of the split "tuning" has
            a class that is unseen for test.
        unseen: names of the unseen classes, where they are not all those of `eval_split`.

    Returns:
        A data set with the columns `image`, `mask` and `caption`.
    """
    seeds = scene_seeds(split, seed)
    if num_scenes is None:
        if not streaming:
            raise InputError("An endless picture world does not fit into memory: give num_scenes or streaming=True.")
        shards = [(seeds.start + shard, seeds.stop, _SHARDS) for shard in range(_SHARDS)]
    elif num_scenes < 1:
        raise InputError(f"num_scenes must be at least 1, got {num_scenes}.")
    else:
        bounds = np.linspace(0, num_scenes, min(_SHARDS, num_scenes) + 1).astype(int).tolist()
        shards = [(seeds.start + start, seeds.start + stop, 1) for start, stop in itertools.pairwise(bounds)]
    if streaming:
        arguments = {"split": split, "shards": shards, "eval_split": eval_split, "unseen": unseen}
        return IterableDataset.from_generator(_stream, features=FEATURES, gen_kwargs=arguments)
    rows: Iterable[dict[str, Any]] = _stream(split, shards, eval_split, unseen)
    rows = list(tqdm(rows, total=num_scenes, desc="drawing", unit="scene", delay=2))
    # Not from a generator, whose result would stay in the cache after a change of the drawing code.
    return Dataset.from_dict({column: [row[column] for row in rows] for column in FEATURES}, features=FEATURES)


def _stream(
    split: Split, shards: list[tuple[int, int, int]], eval_split: EvalSplit, unseen: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """Draw the rows of shards, each the start, stop and step of its seeds."""
    for shard in shards:
        for scene_seed in range(*shard):
            yield draw_example(split, scene_seed, eval_split, unseen)


def mask_palette() -> list[int]:
    """Return a palette, 3 numbers per class id, in which neighbouring ids have different colours."""
    colours = (
        colorsys.hsv_to_rgb(0.618 * index % 1, 0.55 + 0.4 * (index % 2), 0.95 - 0.2 * (index % 3))
        for index in range(len(CLASS_NAMES))
    )
    return [round(255 * channel) for colour in colours for channel in colour]


def export_picture_world(
    folder: str | Path, split: Split, num_scenes: int, seed: int = 0, eval_split: EvalSplit = "test"
) -> None:
    """Write scenes to a folder that `load_dataset("imagefolder", data_dir=folder)` reads back.

    Args:
        folder: receives `images/*.png`, `masks/*.png` (palette pictures whose values are class ids),
            `metadata.jsonl` (`file_name`, `mask_file_name`, `caption`) and `classes.txt` (one name per line, by id).
        split: see `load_picture_world`.
        num_scenes: see there.
        seed: see there.
        eval_split: see there.
    """
    folder = Path(folder)
    if (folder / "metadata.jsonl").exists():
        raise FileExistsError(f"{folder} already contains an export: remove it, or choose another folder.")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    palette, lines = mask_palette(), []
    seeds = scene_seeds(split, seed)[:num_scenes]
    for index, scene_seed in enumerate(tqdm(seeds, desc="exporting", unit="scene")):
        row = draw_example(split, scene_seed, eval_split)
        row["mask"].putpalette(palette)
        files = {"file_name": f"images/{index:06d}.png", "mask_file_name": f"masks/{index:06d}.png"}
        _save_png(row["image"], folder / files["file_name"])
        _save_png(row["mask"], folder / files["mask_file_name"])
        lines.append(json.dumps({**files, "caption": row["caption"]}))
    _save_lines(lines, folder / "metadata.jsonl")
    _save_lines(CLASS_NAMES, folder / "classes.txt")


def _save_png(image: PILImage.Image, path: Path) -> None:
    """Write a PNG file under a temporary name, then rename it."""
    part = path.with_suffix(".part")
    image.save(part, format="PNG")
    os.replace(part, path)


def _save_lines(lines: Iterable[str], path: Path) -> None:
    """Write a text file under a temporary name, then rename it."""
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(part, path)


def main() -> None:
    """Export scenes from the command line."""
    parser = argparse.ArgumentParser(description="Write scenes of the picture world to a folder.")
    parser.add_argument("folder", help="output folder, created if missing")
    parser.add_argument("--split", choices=get_args(Split), default="train", help="default: train")
    parser.add_argument("--num-scenes", type=int, default=100, help="default: 100")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--eval-split", choices=get_args(EvalSplit), default="test", help="what train is for (default: test)"
    )
    arguments = parser.parse_args()
    try:
        export_picture_world(
            arguments.folder, arguments.split, arguments.num_scenes, arguments.seed, arguments.eval_split
        )
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
