"""`zegclip export-data`: write a data set in the format of another tool."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from PIL import Image
from tqdm import tqdm

from zegclip.errors import UsageError
from zegclip.exporting.formats import FORMATS
from zegclip.files import new_folder
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.datasets import find_files, name_pictures, read_sample
from zegclip.processing.image_reading import read_frame
from zegclip.processing.input_error import InputError


@dataclass
class Exported:
    """
    What has been written.

    Attributes:
        pictures: Number of pictures of each split.
        broken: A sentence for each picture that was left out.
        ignored_share: Share of the pixels that no class covers.
    """

    pictures: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    ignored_share: float = 0.0


def export_data(data: DatasetDict, split: ClassSplit, target: Path, kind: str) -> Exported:
    """
    Write pictures and class maps in another format; pictures that cannot be read are left out.

    Pictures are copied as they are. Those that their EXIF orientation turns are written upright, as PNG, since not
    every tool turns them, and class maps are those of upright pictures.

    Args:
        data: Splits with `image` and `mask`, not decoded.
        split: The classes.
        target: Folder, which must not exist or be empty; it appears when everything has been written.
        kind: A key of [`FORMATS`].

    Raises:
        UsageError: If the format cannot hold a class name, or no picture can be read.
        OSError: If the target cannot be written.
    """
    done = Exported()
    num_pixels = num_ignored = 0
    named = {name: name_pictures(rows) for name, rows in data.items()}
    all_names = [name.lower() for names in named.values() for name in names]
    # A format without a folder for each split would mix them up.
    prefixed = kind == "colours" and len(set(all_names)) < len(all_names)
    with new_folder(target) as folder:
        writer = FORMATS[kind](folder, split)
        total = sum(map(len, data.values()))
        with tqdm(total=total, desc="exporting", unit="picture", disable=None) as bar:
            for split_name, rows in data.items():
                done.pictures[split_name] = 0
                for index, name in enumerate(named[split_name]):
                    bar.update()
                    row = rows[index]
                    try:
                        path = writer.picture_path(split_name, f"{split_name}/{name}" if prefixed else name)
                        image, labels = read_sample(row, split, index)
                        orientation = read_frame(find_files(row, index)[0][0])[0]
                    except (InputError, UsageError) as error:
                        done.broken.append(str(error))
                        continue
                    file = _write_picture(row["image"], image if orientation > 1 else None, folder, path)
                    ids = np.where(labels == split.ignore_index, -1, labels)
                    writer.add(split_name, f"{split_name}/{name}" if prefixed else name, file, ids)
                    done.pictures[split_name] += 1
                    num_pixels += ids.size
                    num_ignored += int((ids < 0).sum())
        if not num_pixels:
            first = done.broken[0] if done.broken else "there are no pictures."
            raise UsageError(f"No picture could be exported: {first}")
        writer.finish()
    done.ignored_share = num_ignored / num_pixels
    return done


def _write_picture(file: Mapping[str, Any], upright: Image.Image | None, folder: Path, path: str) -> str:
    """Write a picture's file, or the upright picture if it is given; return its path in the folder, with suffix."""
    source, content = file.get("path"), file.get("bytes")
    suffix = ".png"
    if upright is None and source:
        suffix = os.path.splitext(source)[1]
    elif upright is None:
        with Image.open(BytesIO(content or b"")) as image:
            suffix = f".{str(image.format).lower()}".replace(".jpeg", ".jpg")
    target = folder / f"{path}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if upright is not None:
        upright.save(target)
    elif content is not None:
        target.write_bytes(content)
    else:
        shutil.copyfile(source or "", target)
    return f"{path}{suffix}"
