"""Segments pictures, reading ahead and writing behind."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from zegclip.errors import UsageError, explain_fault
from zegclip.identity import file_state
from zegclip.int8 import quantize_vision_tower
from zegclip.loading import load_model, load_processor
from zegclip.processing.class_embeds_cache import default_cache_folder
from zegclip.processing.image_reading import load_rgb, on_one_line
from zegclip.processing.input_error import InputError
from zegclip.processing.names import nested_classes
from zegclip.processing.pipeline import TASK, ZeroShotImageSegmentationPipeline
from zegclip.processing.windows import is_out_of_memory, window_boxes
from zegclip.segmenting.results import USUAL, describe, write_results

# Up to this weight of what the CLIP says without training, scores are still those of the trained head in the main.
_SMALL_WEIGHT = 0.1
LOW_SCORE = 0.2
"""
Pictures whose pixels have a lower mean score are remarked on: probably none of the labels fits.

Scores of trained models are sigmoids, 0.5 means as likely as not; without training, scores only compare labels, and
nothing is remarked. With the embedded model, pictures whose classes are all among the labels have mean scores of 0.3
to 0.8, per class 0.2 to 0.9, and pictures without any of the labels 0.04 to 0.15.
"""
_DELAY = 3  # Seconds until a progress bar appears.
_TIMEOUT = 30  # Seconds without an answer, after which a URL counts as unreadable.

ReadPicture = tuple[str, dict[str, int], Image.Image]  # Path, state of the file, RGB picture.


class ProgressPipeline(ZeroShotImageSegmentationPipeline):
    """
    The pipeline with progress bars.

    Attributes:
        show_progress: Whether to show progress bars for the windows of a picture and for encoding names, after some
            seconds, on a terminal.
    """

    def _forward(self, model_inputs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        usual = self.processor.image_processor
        size, stride = (kwargs.get(name, getattr(usual, name)) for name in ("window_size", "window_stride"))
        height, width = model_inputs["pixel_values"].shape[-2:]
        boxes = window_boxes(height, width, size, stride)
        passes = 2 if self.blend_weight(kwargs.get("training_free_weight")) else 1
        disable = None if self.show_progress and len(boxes) > 1 else True
        bar = tqdm(total=passes * len(boxes), unit="window", delay=_DELAY, leave=False, disable=disable)

        def count(module: torch.nn.Module, given: tuple, image_embeds: torch.Tensor) -> None:
            # Windows that are done again, as memory ran out behind this module, are not to count beyond the total.
            bar.update(min(len(image_embeds), bar.total - bar.n))

        with bar:
            # Both passes call it; the one without training does not call the model's `forward`.
            hook = self.model.clip.visual_projection.register_forward_hook(count)
            try:
                return super()._forward(model_inputs, *args, **kwargs)
            finally:
                hook.remove()


@dataclass
class Outcome:
    """
    Outcome of segmenting some pictures.

    Attributes:
        segmented: Number of pictures segmented.
        done_before: Number of pictures that had results already.
        failures: One sentence for each picture that could not be read, or was too large for the memory.
        doubtful: Pictures segmented with a mean score below `LOW_SCORE`.
    """

    segmented: int = 0
    done_before: int = 0
    failures: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)


def load_segmenter(model: str | os.PathLike, device: str | None = None, dtype: str = "float32") -> ProgressPipeline:
    """
    Load a model and its processor as a pipeline.

    Args:
        model: Folder or Hub id.
        device: Name of a PyTorch device, by default an accelerator if there is one.
        dtype: Name of a PyTorch dtype, or `"int8"` for the vision tower on a CPU.

    Raises:
        ModelError: As `load_model` and `load_processor`.
        UsageError: If there is no such device, or int8 is not possible.
    """
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"There is no device {device!r} that PyTorch could use here.") from error
    loaded = load_model(model).to(torch.float32 if dtype == "int8" else getattr(torch, dtype))
    if device is not None:
        # With several processes, a pipeline ignores its argument `device` and uses the model's.
        loaded.to(device)
    # One mask per label would need too much memory for large pictures and many labels.
    settings = {"task": TASK, "device": device, "output_type": "class_map"}
    segmenter = ProgressPipeline(model=loaded, processor=load_processor(model), **settings)
    segmenter.names_cache_folder = default_cache_folder()
    if dtype == "int8":
        if segmenter.device.type != "cpu":
            raise UsageError(f"int8 is for CPUs, and the device is {segmenter.device}: choose --device cpu.")
        quantize_vision_tower(segmenter.model)
    return segmenter


def _read(path: str) -> ReadPicture:
    state = file_state(path) if os.path.exists(path) else {}  # before it is read
    return path, state, load_rgb(path, timeout=_TIMEOUT)


def _read_pictures(
    paths: Iterable[str], taken: list[ReadPicture], fail: Callable[[str], None]
) -> Iterator[Image.Image]:
    """
    Yield the pictures that can be read and append them to `taken`; `fail` gets a sentence for each other one.

    While one is in use, the next one is read.
    """
    with ThreadPoolExecutor(1) as reader:
        readings = chain((reader.submit(_read, path) for path in paths), [None])
        for reading, _ in pairwise(readings):
            try:
                taken.append(reading.result())
            except (InputError, MemoryError) as error:
                fail(str(error))
            else:
                yield taken[-1][2]


def segment_pictures(
    segmenter: ProgressPipeline,
    pictures: Mapping[str, str],
    labels: Sequence[str | Sequence[str]],
    output: Path,
    model_name: str,
    model_state: str = "",
    formats: Collection[str] = USUAL,
    show_progress: bool = True,
    **settings: Any,
) -> Outcome:
    """
    Segment pictures and write the results of each; one that cannot be read or is too large does not stop the others.

    While the model segments a picture, the next one is read and the results of the last one are written.

    Args:
        segmenter: From [`load_segmenter`].
        pictures: Paths or URLs, and the stem of each one's results, see [`name_results`].
        labels: Class names, as the pipeline takes them.
        output: Folder for the results, created with the first of them.
        model_name: For the JSON files.
        model_state: For the JSON files, see [`state_of_model`].
        formats: What to write, see [`write_results`].
        show_progress: Whether to show a progress bar for several pictures, and one for the windows of a picture that
            takes some seconds, on a terminal.
        **settings: `threshold`, `window_size` and others of the pipeline.

    Raises:
        InputError: If a label or setting is not valid.
        OSError: If results cannot be written.
    """
    classes = nested_classes(labels)
    softmax = segmenter.model.config.score_function == "softmax"
    only_compares = softmax or segmenter.blend_weight(settings.get("training_free_weight")) > _SMALL_WEIGHT
    outcome = Outcome()
    taken: list[ReadPicture] = []
    progress = tqdm(total=len(pictures), unit="picture", disable=None if show_progress and len(pictures) > 1 else True)
    segmenter.show_progress = show_progress

    def fail(sentence: str) -> None:
        outcome.failures.append(sentence)
        progress.update()

    def write(read: ReadPicture, result: dict[str, Any]) -> None:
        path, state, picture = read
        described = describe(path, state, model_name, model_state, classes, settings)
        write_results(output, pictures[path], picture, result, described, formats)
        outcome.segmented += 1
        inside = result["scores"][result["segmentation"] >= 0]
        if inside.size and not only_compares and inside.mean(dtype=np.float64) < LOW_SCORE:
            outcome.doubtful.append(path)
        progress.update()

    def fail_without_room(path: str, error: Exception) -> None:
        if not is_out_of_memory(error):
            raise error
        fail(f"{on_one_line(path)}: {explain_fault(error)}")

    def wait_for(path: str, writing: Future[None]) -> None:
        try:
            writing.result()
        except UsageError as error:
            fail(str(error))
        except (RuntimeError, MemoryError) as error:
            fail_without_room(path, error)

    asked_for = settings | {"return_segmentation_scores": "scores" in formats}
    with progress, ThreadPoolExecutor(1) as writer:
        # As a generator, the pictures are read one at a time and the labels are encoded once for all.
        results = iter(segmenter(_read_pictures(pictures, taken, fail), candidate_labels=classes, **asked_for))
        last: tuple[str, Future[None]] | None = None
        while True:
            try:
                result = next(results, None)
            except (RuntimeError, MemoryError) as error:
                if not taken:
                    raise
                fail_without_room(taken.pop()[0], error)
                continue
            if last is not None:
                wait_for(*last)
            if result is None:
                return outcome
            read = taken.pop()
            last = read[0], writer.submit(write, read, result)
