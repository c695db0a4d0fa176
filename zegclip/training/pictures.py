"""Pictures and masks as tensors for training and evaluation, and hashes of their content."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from PIL import Image
from torch.utils.data import Sampler

from zegclip.processing.augmentation import TrainingAugmentation, fill_up
from zegclip.processing.class_split import ClassSplit, Setting
from zegclip.processing.datasets import read_sample
from zegclip.processing.image_processing_base import ZegClipImageProcessorBase
from zegclip.processing.input_error import InputError

SKIPPED_FILE = "skipped_samples.txt"
"""File in the output folder that lists the pictures skipped with `skip_bad_samples`."""
_MOST_SKIPPED_IN_A_ROW = 100


class TrainingPictures(torch.utils.data.Dataset):
    """
    Random crops of one size, with the labels of a setting.

    A sample depends only on the seed, the epoch and the picture: it is the same with any number of workers or
    processes, and after resuming.

    Args:
        data: Rows with `image` and `mask`, not decoded, from [`load_data`].
        split: The classes.
        setting: Which labels training sees.
        augmentation: Crops and distorts pictures.
        image_processor: Converts crops to pixel values.
        seed: Seed of the augmentation.
        skipped_file: Pictures that cannot be read are listed there and replaced by random others; `None`: they raise.
    """

    def __init__(
        self,
        data: Dataset,
        split: ClassSplit,
        setting: Setting,
        augmentation: TrainingAugmentation,
        image_processor: ZegClipImageProcessorBase,
        seed: int = 0,
        skipped_file: Path | None = None,
    ) -> None:
        self.data = data
        self.split = split
        self.setting: Setting = setting
        self.augmentation = augmentation
        self.image_processor = image_processor
        self.seed = seed
        self.skipped_file = skipped_file

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int) -> dict[str, torch.Tensor]:
        """
        Read, augment and normalise one sample.

        Args:
            key: `epoch * len + index`, from [`PictureSampler`].

        Returns:
            `pixel_values` `(3, crop, crop)` float32, `labels` `(crop, crop)` int64, and `row`, the picture's index.
        """
        epoch, index = divmod(key, len(self))
        rng = np.random.default_rng([self.seed, epoch, index])
        image, ids, row = self._read(index, rng)
        # The crop is chosen by the labels of all classes, as in the official pipeline; unseen ones are hidden after.
        image, ids = self.augmentation(image, ids, rng)
        # The processor normalises as in evaluation; the augmentation has already resized.
        prepared = self.image_processor(image, do_resize=False, input_data_format="channels_last")
        pixel_values, labels = fill_up(
            torch.as_tensor(prepared["pixel_values"][0]),
            self.split.training_labels(ids, self.setting),
            crop_size=self.augmentation.crop_size,
            ignore_index=self.split.ignore_index,
        )
        return {"pixel_values": pixel_values, "labels": labels, "row": torch.tensor(row)}

    def name(self, row: int) -> str:
        """Return the path of a picture, or its row if it has none."""
        return self.data[row]["image"]["path"] or f"picture {row}"

    def _read(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        for _ in range(_MOST_SKIPPED_IN_A_ROW):
            try:
                image, ids = read_sample(self.data[index], self.split, index)
                return np.asarray(image), ids, index
            except InputError as error:
                if self.skipped_file is None:
                    raise
                add_skipped(self.skipped_file, error)
                index = int(rng.integers(len(self)))
        raise InputError(f"{_MOST_SKIPPED_IN_A_ROW} pictures in a row could not be read; see {self.skipped_file}.")


class PictureSampler(Sampler[int]):
    """
    All pictures in random order, as keys `epoch * num_pictures + index`.

    The order depends only on the seed and the epoch. (The sampler of accelerate loses the epoch when batches are
    skipped after resuming.) An epoch ends with the last whole batch, so that batches are the same for any number of
    processes.

    Args:
        num_pictures: Size of the data set.
        seed: Seed of the order.
        batch_size: Pictures of a step over all processes.
    """

    def __init__(self, num_pictures: int, seed: int, batch_size: int = 1) -> None:
        self.num_pictures = num_pictures
        self.length = num_pictures // batch_size * batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_pictures)[: self.length]
        yield from (self.epoch * self.num_pictures + order).tolist()


class EvaluationPictures(torch.utils.data.Dataset):
    """
    Whole pictures, resized by the processor, with labels of all classes at the original size.

    Args:
        data: As for [`TrainingPictures`].
        split: The classes.
        image_processor: Resizes and normalises.
        skipped_file: Pictures that cannot be read are listed there and returned without pixels, so that they do not
            count; `None`: they raise.
    """

    def __init__(
        self,
        data: Dataset,
        split: ClassSplit,
        image_processor: ZegClipImageProcessorBase,
        skipped_file: Path | None = None,
    ) -> None:
        self.data = data
        self.split = split
        self.image_processor = image_processor
        self.skipped_file = skipped_file

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Read a picture, RGB, and its labels, `(height, width)` int64."""
        return read_sample(self.data[index], self.split, index)

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Convert a picture to `pixel_values` `(3, height, width)` float32."""
        return self.image_processor(image, return_tensors="pt")["pixel_values"][0]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `pixel_values` `(3, height, width)` float32 and `labels` `(h, w)` int64."""
        try:
            image, ids = self.read(index)
        except InputError as error:
            if self.skipped_file is None:
                raise
            add_skipped(self.skipped_file, error)
            return {"pixel_values": torch.zeros(3, 0, 0), "labels": torch.zeros(0, 0, dtype=torch.long)}
        return {"pixel_values": self.prepare(image), "labels": torch.from_numpy(ids)}


def add_skipped(file: Path, error: InputError) -> None:
    """Append a line to a list that several workers and processes write to, unless it contains the line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = str(error).splitlines()[0] + "\n"
    if line.strip() in read_skipped(file):
        return
    # A short write to a file opened for appending is atomic.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_skipped(file: Path) -> list[str]:
    """Return the distinct lines of a list of skipped pictures; none if it does not exist."""
    if not file.is_file():
        return []
    return list(dict.fromkeys(file.read_text(encoding="utf-8").splitlines()))


def print_skipped(file: Path) -> None:
    """Print how many pictures a list of skipped ones has, in the main process."""
    if skipped := read_skipped(file):
        PartialState().print(f"Skipped and listed in {file}: {len(skipped)}; the first: {skipped[0]}")


def spread_evenly(length: int, count: int) -> list[int]:
    """Return `count` evenly spread indices below `length`, sorted; all indices if there are fewer."""
    count = min(count, length)
    return [(2 * place + 1) * length // (2 * count) for place in range(count)]


def content_of_rows(data: Dataset) -> str:
    """
    Return a short key of the pictures and masks of a data set, in their order.

    It depends on the paths relative to the folder that all files are in, on the sizes of picture files, and on the
    bytes of masks, which are small and often corrected.

    Args:
        data: Rows with `image` and `mask`, not decoded.
    """
    folders: dict[str, str] = {}
    files: list[tuple[str, str, str]] = []
    for batch in data.with_format("arrow").iter(100):
        for column in ("image", "mask"):
            for file in batch[column].to_pylist():
                path, content = (file or {}).get("path"), (file or {}).get("bytes")
                folder, name = os.path.split(path or "")
                if content is None and path is not None:
                    folders.setdefault(folder, os.path.abspath(folder))
                else:
                    folder = ""
                files.append((folder, name, _file_key(path, content, hashed=column == "mask")))
    root = os.path.commonpath(folders.values()) if folders else ""
    relative = {folder: os.path.relpath(place, root) for folder, place in folders.items()}
    digest = hashlib.blake2b(digest_size=8)
    for folder, name, key in files:
        digest.update(os.fsencode(f"{relative.get(folder, '')}/{name} {key}\n"))
    return f"{len(data)} pictures, {digest.hexdigest()}"


def _file_key(path: str | None, content: bytes | None, hashed: bool) -> str:
    """Return the hash or the size of a file; empty if it cannot be read, which is reported when it is used."""
    try:
        if content is None and path is not None:
            if not hashed:
                return str(os.stat(path).st_size)
            content = Path(path).read_bytes()
    except OSError:
        return ""
    content = content or b""
    return hashlib.blake2b(content, digest_size=8).hexdigest() if hashed else str(len(content))


def content_of_sample(row: Mapping[str, Any]) -> str:
    """
    Return a hash of the bytes of a picture and of its mask; empty if one of them cannot be read.

    Args:
        row: `image` and `mask` as files, as `read_sample` takes them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for column in ("image", "mask"):
        file = row[column] or {}
        content = file.get("bytes")
        try:
            content = Path(file.get("path") or "").read_bytes() if content is None else content
        except OSError:
            return ""
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()
