"""The evaluation protocols, and a loop over pictures that processes share and that resumes after an interruption."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from zegclip.drawing.colours import index_mask, make_colours
from zegclip.errors import UsageError
from zegclip.files import read_json, replacing, write_json
from zegclip.processing.class_split import Setting
from zegclip.processing.datasets import name_pictures
from zegclip.processing.merging import Blend, merge_masks
from zegclip.processing.metrics import class_counts
from zegclip.processing.windows import BatchSize, predict_pictures, window_boxes
from zegclip.training.pictures import EvaluationPictures, content_of_sample

INDUCTIVE_OFFSET = 0.1
"""Subtracted from the scores of seen classes in the papers' inductive evaluation (`zegclip.md` section 6)."""


@dataclass(frozen=True)
class Protocol:
    """
    How pictures are predicted in an evaluation.

    Args:
        window_size: Side of the sliding windows in pixels of the resized picture; `None`: the whole picture at once.
        window_stride: Distance between windows.
        seen_offset: Subtracted from the scores of seen classes.
        background_threshold: Pixels whose best score is lower belong to the class 0, the background.
        refine: Whether masks follow the outlines in the picture (PAMR).
        training_free_weight: Weight, in [0, 1], of what the CLIP says without training (NACLIP).
    """

    window_size: int | None
    window_stride: int | None
    seen_offset: float
    background_threshold: float = 0.0
    refine: bool = False
    training_free_weight: float = 0.0


def default_offset(setting: Setting | str, score_function: str = "sigmoid") -> float:
    """Return the papers' offset of seen classes: in the inductive setting alone, and of trained heads' scores."""
    return INDUCTIVE_OFFSET if setting == "inductive" and score_function == "sigmoid" else 0.0


def predict_maps(
    model: Any,
    pictures: Sequence[torch.Tensor],
    class_embeds: torch.Tensor,
    protocol: Protocol,
    sizes: Sequence[Sequence[int]],
    *,
    seen_ids: Sequence[int],
    batch_size: int | BatchSize,
    class_of_name: torch.Tensor | None = None,
    embeds_without_prompts: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """
    Segment pictures into all classes. Their windows are predicted together, their maps made one by one.

    Args:
        model: A [`ZegClipForSemanticSegmentation`], wrapped or not.
        pictures: `(3, height, width)` each.
        class_embeds: `(names, dim)`.
        protocol: Windows, offset and what else is done with the scores.
        sizes: `(height, width)` of each result.
        seen_ids: Ids of the classes that the offset is for.
        batch_size: Windows per forward pass, see [`predict_pictures`].
        class_of_name: `(names,)` class of each name, where classes have several. The best of a class's names counts.
        embeds_without_prompts: `(names, dim)` class embeddings for the training-free part, if it has a weight.

    Yields:
        `(height, width)` int64 ids of each picture.
    """
    inputs = [picture[None] for picture in pictures]
    geometry = (protocol.window_size, protocol.window_stride, batch_size)
    predicted = predict_pictures(model, inputs, class_embeds, *geometry)
    blends: list[Blend | None] = [None] * len(inputs)
    if protocol.training_free_weight:
        assert embeds_without_prompts is not None
        others = predict_pictures(model.get_training_free_logits, inputs, embeds_without_prompts, *geometry)
        blends = [(windows, protocol.training_free_weight) for windows in others]
    if class_of_name is not None:
        seen = set(seen_ids)
        seen_ids = [name for name, index in enumerate(class_of_name.tolist()) if index in seen]
    for windows, blend, picture, (height, width) in zip(predicted, blends, pictures, sizes, strict=True):
        ids, scores = merge_masks(
            windows,
            (height, width),
            seen_ids=seen_ids,
            seen_offset=protocol.seen_offset,
            blend=blend,
            picture=picture if protocol.refine else None,
        )
        ids = ids if class_of_name is None else class_of_name[ids]
        threshold = protocol.background_threshold
        yield ids.where(scores >= threshold, 0) if threshold else ids


class CountStore:
    """
    Class counts per picture and protocol in a folder: each process appends one line per picture to its own file.

    Each line has a key of what was counted: the bytes of picture and mask, and the record. Incomplete lines, and lines
    with another key than the picture's present one, are ignored: these pictures are evaluated again.

    Args:
        folder: Created if missing.
        record: What determines the counts beside the pictures: model, classes, protocols and settings.

    Raises:
        UsageError: If the folder has another evaluation.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / "evaluation.json"
        record = json.loads(json.dumps(record))
        stored = read_json(path)
        for name in record.keys() & stored.keys():
            if stored[name] != record[name]:
                raise UsageError(
                    f"{folder} has another evaluation ({name} differs: {_shorten(stored[name])} there, "
                    f"{_shorten(record[name])} now): remove it, or choose another results_dir."
                )
        state = PartialState()
        state.wait_for_everyone()  # All must have read before one writes.
        if stored != record and state.is_main_process:
            write_json(path, record)
        self._digest = hash_of(record)

    def read(self) -> dict[int, dict[str, np.ndarray]]:
        """Return the stored counts by picture and protocol, sparse `(4, n)` int64: ids and three counts."""
        return {
            entry["picture"]: {
                name: np.array(rows, dtype=np.int64).reshape(4, -1) for name, rows in entry["counts"].items()
            }
            for path in self._files()
            for entry in _read_lines(path)
        }

    def forget_others(self, pictures: EvaluationPictures, names: Sequence[str] | None = None) -> None:
        """Delete counts and predictions of other files or settings; the processes share the reading."""
        state = PartialState()
        known = sorted({(entry["picture"], entry["of"]) for path in self._files() for entry in _read_lines(path)})
        mine = known[state.process_index :: state.num_processes]
        others = set(gather_object([(index, of) for index, of in mine if of != self.key(pictures, index, names)]))
        if others and state.is_main_process:
            for path in self._files():
                kept = [entry for entry in _read_lines(path) if (entry["picture"], entry["of"]) not in others]
                with replacing(path) as part:
                    part.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
            self._delete_predictions(pictures)
        state.wait_for_everyone()

    def _delete_predictions(self, pictures: EvaluationPictures) -> None:
        """Delete the saved predictions of pictures without counts."""
        folders = list(self.folder.glob("predictions/*"))
        if folders:
            names = name_pictures(pictures.data)
            kept = {f"{names[index]}.png" for index in self.read() if index < len(names)}
            for folder in folders:
                for path in folder.rglob("*.png"):
                    if path.relative_to(folder).as_posix() not in kept:
                        path.unlink()

    def key(self, pictures: EvaluationPictures, index: int, names: Sequence[str] | None = None) -> str:
        """Return the key of a picture's present files, the record and, if it is saved, the prediction's name."""
        saved = f" {hash_of(names[index])}" if names is not None else ""
        return f"{self._digest} {content_of_sample(pictures.data[index])}{saved}"

    def append(self, picture: int, of: str, counts: Mapping[str, np.ndarray]) -> None:
        """Store the `(3, classes)` counts of one picture under each protocol; `of` is its key."""
        sparse = {}
        for name, values in counts.items():
            ids = np.flatnonzero(values.any(axis=0))
            sparse[name] = [ids.tolist(), *values[:, ids].tolist()]
        path = self.folder / f"counts-{PartialState().process_index:05d}.jsonl"
        torn = path.is_file() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps({"picture": picture, "of": of, "counts": sparse}) + "\n")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("counts-*.jsonl"))

    def total(self, num_classes: int) -> dict[str, np.ndarray]:
        """Return the `(3, classes)` int64 sum over all pictures under each protocol."""
        sums: dict[str, np.ndarray] = {}
        for counts in self.read().values():
            for name, rows in counts.items():
                total = sums.setdefault(name, np.zeros((3, num_classes), dtype=np.int64))
                total[:, rows[0]] += rows[1:]
        return sums


_Sample = tuple[int, str, dict[str, torch.Tensor]]  # Index, key, and what [`EvaluationPictures`] returns.


class _KeyedPictures(torch.utils.data.Dataset):
    """Some pictures with their indices and keys; a key is computed before its picture is read."""

    def __init__(
        self, pictures: EvaluationPictures, indices: Sequence[int], store: CountStore, names: Sequence[str] | None
    ) -> None:
        self.pictures = pictures
        self.indices = indices
        self.store = store
        self.names = names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> _Sample:
        index = self.indices[position]
        return index, self.store.key(self.pictures, index, self.names), self.pictures[index]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a file of counts; those of an earlier version have no key `of`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield {"of": "", **json.loads(line)}
        except json.JSONDecodeError:
            continue


def hash_of(value: Any) -> str:
    """Return a hash of JSON values."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read()


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_ELSEWHERE = {
    *("_name_or_path", "architectures", "auto_mapping", "base_model_name_or_path", "clip_model_name_or_path", "dtype"),
    *("id2label", "inference_mode", "label2id", "peft_version", "prompt_input_ids", "revision", "seen_class_names"),
    *("task_type", "transformers_version", "vocabulary"),
}
"""Fields of configurations for paths, origins and class names, which do not affect the scores."""


def fingerprint(model: Any) -> str:
    """
    Return a hash of a model's weights, their names and its configuration, independent of the model's path.

    The decode head that an adapter has replaced is left out: on a plain CLIP it is initialised at random.
    """
    digest = hashlib.blake2b(digest_size=8)
    settings = [model.config.to_dict(), *(config.to_dict() for config in getattr(model, "peft_config", {}).values())]
    digest.update(hash_of(_without_places(settings)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if ".original_module." in name:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _without_places(item) for name, item in value.items() if name not in _ELSEWHERE}
    if isinstance(value, set):
        return sorted(value)
    return [_without_places(item) for item in value] if isinstance(value, (list, tuple)) else value


@torch.inference_mode()
def evaluate_pictures(
    model: Any,
    class_embeds: torch.Tensor,
    pictures: EvaluationPictures,
    protocols: Mapping[str, Protocol],
    store: CountStore,
    *,
    batch_size: int,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    class_of_name: torch.Tensor | None = None,
    embeds_without_prompts: torch.Tensor | None = None,
    save_predictions: bool = False,
    title: str = "model",
) -> dict[str, np.ndarray]:
    """
    Count classes in all pictures without stored counts; the processes share them.

    Args:
        model: In eval mode, on its device.
        class_embeds: `(names, dim)` on the same device.
        pictures: What to evaluate.
        protocols: Each picture is read once and predicted under each of them.
        store: Stores the counts.
        batch_size: Windows per forward pass.
        num_workers: Worker processes of the data loader.
        dtype: Of autocast; `None` disables it.
        class_of_name: As for [`predict_maps`].
        embeds_without_prompts: As for [`predict_maps`].
        save_predictions: Whether to save each predicted map in the store's folder, as a PNG with the picture's name
            (see [`name_pictures`]) and the data set's mask values.
        title: For the progress bar.

    Returns:
        The `(3, classes)` int64 counts over all pictures for each protocol, the same on every process.
    """
    state = PartialState()
    split = pictures.split
    values = np.arange(len(split.names)) if split.mask_values is None else np.array(split.mask_values)
    names = name_pictures(pictures.data) if save_predictions else None
    store.forget_others(pictures, names)
    done = store.read().keys()
    # Every process must have read before any writes.
    state.wait_for_everyone()
    if done and state.is_main_process:
        print(f"{title}: {len(done)} of {len(pictures)} pictures were evaluated before, in {store.folder}.")
    left = [index for index in range(len(pictures)) if index not in done]
    mine = left[state.process_index :: state.num_processes]
    device = class_embeds.device
    keyed = _KeyedPictures(pictures, mine, store, names)
    loader = DataLoader(keyed, batch_size=None, num_workers=num_workers, pin_memory=device.type == "cuda")
    colours = np.zeros((values.max() + 1, 3), dtype=np.uint8)
    colours[values] = make_colours(len(values))
    # Of each protocol on its own: memory may run out for whole pictures alone.
    batches = {protocol: BatchSize(batch_size) for protocol in protocols.values()}
    # A few windows leave an accelerator idle. On a CPU nothing is gained, and a picture's result depends on it alone.
    together = batches if device.type != "cpu" else dict.fromkeys(batches, BatchSize(1))
    progress = tqdm(total=len(mine), desc=title, unit="picture", disable=not mine or not state.is_local_main_process)
    for group in _group(loader, together):
        inputs = [sample["pixel_values"].to(device, non_blocking=True) for _, _, sample in group]
        sizes = [tuple(sample["labels"].shape) for _, _, sample in group]
        predictions = {
            protocol: predict_maps(
                model,
                inputs,
                class_embeds,
                protocol,
                sizes,
                seen_ids=split.seen_ids,
                batch_size=batch,
                class_of_name=class_of_name,
                embeds_without_prompts=embeds_without_prompts,
            )
            for protocol, batch in batches.items()  # Two may be the same, where windows are the whole picture.
        }
        for index, key, sample in group:
            labels = sample["labels"].to(device, non_blocking=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                maps = {protocol: next(found) for protocol, found in predictions.items()}
            counts: dict[str, np.ndarray] = {}
            for name, protocol in protocols.items():
                found = class_counts(maps[protocol], labels, len(split.names), split.ignore_index)
                counts[name] = found.cpu().numpy()
                if names is not None:
                    folder = store.folder / "predictions" / re.sub(r"\W+", "_", name)
                    with replacing(folder / f"{names[index]}.png") as part:
                        index_mask(values[maps[protocol].cpu().numpy()], colours).save(part, format="PNG")
            store.append(index, key, counts)
            progress.update()
    progress.close()
    state.wait_for_everyone()
    return store.total(len(split.names))


def _group(samples: Iterable[_Sample], batches: Mapping[Protocol, BatchSize]) -> Iterator[list[_Sample]]:
    """Group samples until one of the protocols has a batch of windows; the last group may have fewer."""
    group: list[_Sample] = []
    counts = dict.fromkeys(batches, 0)
    for item in samples:
        if not item[2]["labels"].numel():  # It could not be read, and may be repaired before the next evaluation.
            continue
        group.append(item)
        height, width = item[2]["pixel_values"].shape[-2:]
        for protocol in counts:
            counts[protocol] += len(window_boxes(height, width, protocol.window_size, protocol.window_stride))
        if any(counts[protocol] >= batch.windows for protocol, batch in batches.items()):
            yield group
            group, counts = [], dict.fromkeys(batches, 0)
    if group:
        yield group
