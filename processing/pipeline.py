"""The pipeline `zero-shot-image-segmentation`: pictures and class names in, one mask per name out."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.pipelines.base import Pipeline

from .image_reading import TURNED, exif_frame, load_rgb
from .processing_zegclip import UnknownWordsWarning, check_labels, find_unknown_words
from .windows import NO_MEMORY, BatchSize, is_out_of_memory, merge_masks, predict_windows

TASK = "zero-shot-image-segmentation"
# Names of about the same length that are encoded together.
NAMES_AT_ONCE = 64


class ZeroShotImageSegmentationPipeline(Pipeline):
    """
    Segments pictures into classes that are given by name.

    ```python
    >>> from transformers import pipeline
    >>> segmenter = pipeline("zero-shot-image-segmentation", model=PATH)
    >>> segmenter("street.jpg", candidate_labels=["car", "tree"])
    [{"label": "car", "score": 0.93, "mask": <PIL.Image.Image mode=L>}, {"label": "tree", ...}]
    ```

    Every pixel goes to the label with the highest score. Names are encoded anew in each call and once for all of its
    pictures, so give many pictures with the same names as one list or generator. Pictures are taken one at a time,
    each in overlapping windows of the geometry that the image processor was saved with.
    """

    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    model: Any
    processor: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.eval()

    def __call__(self, images: Any, candidate_labels: Sequence[str] | str | None = None, **kwargs: Any) -> Any:
        """
        Segments one picture or several.

        Args:
            images:
                A path, an `http(s)` address or a PIL image; a list or a generator of them for several pictures, for
                which the names are then encoded once. They are turned upright by their EXIF orientation, with a
                warning for a PIL image.
            candidate_labels: Class names, as a list or as one string with commas between them.
            threshold (`float`, *optional*, defaults to 0.0): Pixels whose best score is lower belong to no label.
            window_size (`int`, *optional*):
                Side of the windows in pixels of the resized picture; `None` for the whole picture at once. Defaults to
                that of the image processor.
            window_stride (`int`, *optional*):
                Distance between windows. Defaults to that of the image processor or, where `window_size` is given
                alone, to the same overlap in proportion.
            window_batch_size (`int`, *optional*, defaults to 8):
                Windows that go through the model together; fewer, with a warning, where there is no memory for them.
            timeout (`float`, *optional*): Seconds to wait for an address; waits for ever by default.
            kwargs: The arguments above, and `num_workers` for reading pictures.

        Returns:
            For one picture, a list with a dictionary for each label in the given order, also for labels that win no
            pixel: `label`; `score`, the mean score inside the mask, in [0, 1], and 0.0 for an empty mask; `mask`, a
            PIL image of mode `L` and of the picture's size, 255 where the label has the highest score and 0 elsewhere.
            For several pictures, a list of such lists; for a generator, an iterator over them.

        Warns:
            UnknownWordsWarning: If the model's text tower was trained on a closed list of words and a name has others.

        Raises:
            ValueError: If labels, picture or window geometry are not valid, the tokenizer is another model's, or the
                model gives no numbers; one sentence that names what is wrong.
            MemoryError: If a picture is too large for the memory; one sentence. A generator's next pictures can still
                be asked for.
        """
        if candidate_labels is None:
            candidate_labels = self._postprocess_params.get("candidate_labels")
        if candidate_labels is None:
            raise ValueError("candidate_labels is missing; give the names of the classes to look for.")
        if (kwargs.get("batch_size") or self._batch_size or 1) != 1:
            raise ValueError("Pictures go through one at a time; set window_batch_size instead of batch_size.")
        labels = _read_labels(candidate_labels)
        vocabulary, templates = self.model.config.vocabulary, self.processor.prompt_templates
        unknown = find_unknown_words(labels, vocabulary, templates, model="This model")
        if unknown is not None:
            warnings.warn(unknown, UnknownWordsWarning, stacklevel=2)
        # Of one call, so that what had no room for one picture is not tried again with the next.
        windows = kwargs.pop("window_batch_size", self._forward_params.get("window_batch_size", 8))
        kwargs["window_batch_size"] = BatchSize(windows)
        if isinstance(images, tuple):
            images = list(images)
        if isinstance(images, list) and not images:
            return []
        return super().__call__(images, candidate_labels=labels, class_embeds=self._encode(labels), **kwargs)

    def _encode(self, labels: list[str]) -> torch.Tensor:
        """Class embeddings of the model as it is now, `(names, dim)`, L2-normalised, on its device."""
        # Each name is filled up to the longest that it is encoded with: one sentence among words would cost all dear.
        order = sorted(range(len(labels)), key=lambda index: len(labels[index]))
        num_templates = len(self.processor.prompt_templates)
        encoded = []
        self.processor(text=labels)  # Of all together: it refuses names that are the same for the tokenizer.
        with self.device_placement(), torch.no_grad(), _in_eval_mode(self.model):
            for start in range(0, len(order), NAMES_AT_ONCE):
                some = [labels[index] for index in order[start : start + NAMES_AT_ONCE]]
                tokens = self.processor(text=some, return_tensors="pt")
                largest, vocab_size = int(tokens["input_ids"].max()), self.model.clip.config.text_config.vocab_size
                if largest >= vocab_size:
                    raise ValueError(
                        f"The tokenizer is not the model's: it gives the token {largest}, but the text tower knows "
                        f"{vocab_size} tokens, counted from 0."
                    )
                encoded.append(self.model.get_class_embeds(**tokens.to(self.device), num_templates=num_templates))
        sorted_embeds = torch.cat(encoded)
        class_embeds = torch.empty_like(sorted_embeds)
        class_embeds[order] = sorted_embeds
        return class_embeds

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = _select(kwargs, "timeout")
        forward = _select(kwargs, "class_embeds", "window_size", "window_stride", "window_batch_size")
        postprocess = _select(kwargs, "threshold")
        if not 0 <= postprocess.get("threshold", 0) <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, not be {postprocess['threshold']}.")
        if "candidate_labels" in kwargs:
            postprocess["candidate_labels"] = _read_labels(kwargs.pop("candidate_labels"))
        if kwargs:
            raise TypeError(f"{type(self).__name__} does not know the argument {next(iter(kwargs))!r}.")
        if "window_size" in forward and "window_stride" not in forward:
            forward["window_stride"] = self._proportional_stride(forward["window_size"])
        return preprocess, forward, postprocess

    def _proportional_stride(self, window_size: int | None) -> int | None:
        """The stride that keeps the image processor's overlap at another window size."""
        usual_size = self.processor.image_processor.window_size
        usual_stride = self.processor.image_processor.window_stride
        if None in (window_size, usual_size, usual_stride):
            return window_size
        return max(window_size * usual_stride // usual_size, 1)

    def preprocess(self, image: str | Path | Image.Image, timeout: float | None = None) -> dict[str, Any]:
        """Reads and resizes one picture: `pixel_values` `(1, 3, height, width)` and its `original_size`."""
        picture = load_rgb(image, timeout=timeout)
        if isinstance(image, Image.Image) and exif_frame(image)[0] != 1:
            warnings.warn(TURNED, stacklevel=2)
        with _telling_size(picture.height, picture.width):
            inputs = self.processor(images=picture, return_tensors="pt").to(self.dtype)
        return {"pixel_values": inputs["pixel_values"], "original_size": (picture.height, picture.width)}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        class_embeds: torch.Tensor,
        window_batch_size: int | BatchSize = 8,
        **geometry: Any,
    ) -> dict[str, torch.Tensor]:
        """The best label's index and score at every pixel of the original picture."""
        with _in_eval_mode(self.model):
            windows = predict_windows(
                self.model,
                model_inputs["pixel_values"],
                class_embeds,
                window_size=geometry.get("window_size", self.processor.image_processor.window_size),
                stride=geometry.get("window_stride", self.processor.image_processor.window_stride),
                batch_size=window_batch_size,
            )
        with _telling_size(*model_inputs["original_size"]):
            ids, scores = merge_masks(windows, target_size=model_inputs["original_size"])
        if scores.isnan().any():  # No comparison with one holds, so that the first label would win.
            raise ValueError(
                "The model's scores are no numbers: its weights are broken, or too large for this precision."
            )
        return {"ids": ids, "scores": scores}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], candidate_labels: list[str], threshold: float = 0.0
    ) -> list[dict[str, Any]]:
        """One dictionary per label."""
        scores = model_outputs["scores"].numpy()
        ids = np.where(scores < threshold, -1, model_outputs["ids"].numpy())
        results = []
        for index, label in enumerate(candidate_labels):
            inside = ids == index
            results.append(
                {
                    "label": label,
                    "score": float(scores[inside].mean(dtype=np.float64)) if inside.any() else 0.0,
                    "mask": Image.fromarray(inside.astype(np.uint8) * 255),
                }
            )
        return results

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Save model and processor, which `pipeline("zero-shot-image-segmentation", model=save_directory)` finds again.

        Unlike the base class it writes no code: transformers would from then on ask to trust the folder's code, even
        where this package is installed.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


@contextmanager
def _in_eval_mode(model: Any) -> Iterator[None]:
    """Predict without dropout, also in the middle of a training, which goes on as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _telling_size(height: int, width: int) -> Iterator[None]:
    """Say of which picture it was that memory has run out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{NO_MEMORY} for a picture of {height} x {width} pixels: make it smaller.") from error


def _read_labels(candidate_labels: Sequence[str] | str) -> list[str]:
    if isinstance(candidate_labels, str):
        candidate_labels = candidate_labels.split(",")
    return check_labels(candidate_labels)


def _select(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    """Takes some arguments out of a dictionary, those that are there."""
    return {name: kwargs.pop(name) for name in names if name in kwargs}


__all__ = ["TASK", "ZeroShotImageSegmentationPipeline"]
