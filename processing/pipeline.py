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

from .image_reading import EXIF_WARNING, exif_frame, load_rgb
from .input_error import InputError
from .names import UnknownWordsWarning, check_labels, find_unknown_words, split_labels
from .processing_zegclip import ZegClipProcessor
from .windows import NO_MEMORY, BatchSize, is_out_of_memory, merge_masks, predict_windows

TASK = "zero-shot-image-segmentation"
# Names per call of the text tower.
NAMES_AT_ONCE = 64


class ZeroShotImageSegmentationPipeline(Pipeline):
    """
    Segment pictures into classes given by name.

    ```python
    >>> from transformers import pipeline
    >>> segmenter = pipeline("zero-shot-image-segmentation", model=PATH)
    >>> segmenter("street.jpg", candidate_labels=["car", "tree"])
    [{"label": "car", "score": 0.93, "mask": <PIL.Image.Image mode=L>}, {"label": "tree", ...}]
    ```

    Every pixel is assigned to the label with the highest score. Names are encoded once per call, so pass many pictures
    with the same names as one list or generator. Pictures are processed one at a time, each in overlapping windows
    whose size and stride are those of the image processor.
    """

    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    model: Any
    processor: ZegClipProcessor  # Named here, the processor's code is published with the model's.

    def __call__(self, images: Any, candidate_labels: Sequence[str] | str | None = None, **kwargs: Any) -> Any:
        """
        Segment one picture or several.

        Args:
            images:
                A path, URL or PIL image, or a list or generator of them. The EXIF orientation is applied, with a
                warning for a PIL image.
            candidate_labels: Class names, as a list or as one comma-separated string.
            threshold (`float`, *optional*, defaults to 0.0):
                Pixels whose best score is lower are assigned to no label.
            window_size (`int`, *optional*):
                Side of the windows in pixels of the resized picture; `None` for the whole picture at once. Defaults to
                that of the image processor.
            window_stride (`int`, *optional*):
                Distance between windows. Defaults to that of the image processor or, if only `window_size` is given,
                to the same overlap in proportion.
            window_batch_size (`int`, *optional*, defaults to 8):
                Windows per forward pass; halved, with a warning, when memory runs out.
            timeout (`float`, *optional*): Seconds to wait for a URL; no limit by default.
            kwargs: The arguments above, and `num_workers` for reading pictures.

        Returns:
            For one picture, a list with a dictionary for each label in the given order, also for labels with an empty
            mask: `label`; `score`, the mean score inside the mask, in [0, 1], and 0.0 for an empty mask; `mask`, a
            PIL image of mode `L` and of the picture's size, 255 where the label has the highest score and 0 elsewhere.
            For several pictures, a list of such lists; for a generator, an iterator over them.

        Warns:
            UnknownWordsWarning: If the model has a closed vocabulary and a name has other words.

        Raises:
            InputError: If labels, picture or window geometry are not valid, the tokenizer does not match the model, or
                the scores are NaN.
            MemoryError: If a picture is too large for the memory. A generator can continue with the next picture.
        """
        if candidate_labels is None:
            candidate_labels = self._postprocess_params.get("candidate_labels")
        if candidate_labels is None:
            raise InputError("candidate_labels is missing: give the names of the classes to segment.")
        if (kwargs.get("batch_size") or self._batch_size or 1) != 1:
            raise InputError("Pictures are processed one at a time: set window_batch_size instead of batch_size.")
        labels = _read_labels(candidate_labels)
        vocabulary, templates = self.model.config.vocabulary, self.processor.prompt_templates
        unknown = find_unknown_words(labels, vocabulary, templates, model="This model")
        if unknown is not None:
            warnings.warn(unknown, UnknownWordsWarning, stacklevel=2)
        # Shared by all pictures of the call: a batch size that ran out of memory is not tried again.
        windows = kwargs.pop("window_batch_size", self._forward_params.get("window_batch_size", 8))
        kwargs["window_batch_size"] = BatchSize(windows)
        if isinstance(images, tuple):
            images = list(images)
        if isinstance(images, list) and not images:
            return []
        return super().__call__(images, candidate_labels=labels, class_embeds=self._encode(labels), **kwargs)

    def _encode(self, labels: list[str]) -> torch.Tensor:
        """Class embeddings of the model in its current state, `(names, dim)`, L2-normalised, on its device."""
        tokens = self.processor(text=labels, return_tensors="pt")
        largest, vocab_size = int(tokens["input_ids"].max()), self.model.clip.config.text_config.vocab_size
        if largest >= vocab_size:
            raise InputError(
                f"The tokenizer does not match the model: it returns the token id {largest}, but the text tower has "
                f"{vocab_size} tokens."
            )
        num_templates = len(self.processor.prompt_templates)
        by_name = {key: rows.view(len(labels), num_templates, -1) for key, rows in tokens.items()}
        # Names of similar length are encoded together, cut to their longest: padding all to a single long name would
        # slow every other down.
        order = sorted(range(len(labels)), key=lambda index: len(labels[index]))
        encoded = []
        with self.device_placement(), torch.no_grad(), _in_eval_mode(self.model):
            for start in range(0, len(order), NAMES_AT_ONCE):
                some = order[start : start + NAMES_AT_ONCE]
                longest = int(by_name["attention_mask"][some].sum(dim=-1).max())
                batch = {key: rows[some, :, :longest].flatten(0, 1).to(self.device) for key, rows in by_name.items()}
                encoded.append(self.model.get_class_embeds(**batch, num_templates=num_templates))
        return torch.cat(encoded)[np.argsort(order).tolist()]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = _select(kwargs, "timeout")
        forward = _select(kwargs, "class_embeds", "window_size", "window_stride", "window_batch_size")
        postprocess = _select(kwargs, "threshold")
        if not 0 <= postprocess.get("threshold", 0) <= 1:
            raise InputError(f"threshold must be between 0 and 1, got {postprocess['threshold']}.")
        if "candidate_labels" in kwargs:
            postprocess["candidate_labels"] = _read_labels(kwargs.pop("candidate_labels"))
        if kwargs:
            raise TypeError(f"{type(self).__name__} got an unexpected argument {next(iter(kwargs))!r}.")
        if "window_size" in forward and "window_stride" not in forward:
            forward["window_stride"] = self._proportional_stride(forward["window_size"])
        return preprocess, forward, postprocess

    def _proportional_stride(self, window_size: int | None) -> int | None:
        """The stride that keeps the image processor's relative overlap at another window size."""
        usual_size = self.processor.image_processor.window_size
        usual_stride = self.processor.image_processor.window_stride
        if None in (window_size, usual_size, usual_stride):
            return window_size
        return max(window_size * usual_stride // usual_size, 1)

    def preprocess(self, image: str | Path | Image.Image, timeout: float | None = None) -> dict[str, Any]:
        """Read and resize one picture: `pixel_values` `(1, 3, height, width)` and its `original_size`."""
        picture = load_rgb(image, timeout=timeout)
        if isinstance(image, Image.Image) and exif_frame(image)[0] != 1:
            warnings.warn(EXIF_WARNING, stacklevel=2)
        with _name_size_if_out_of_memory(picture.height, picture.width):
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
        with _name_size_if_out_of_memory(*model_inputs["original_size"]):
            ids, scores = merge_masks(windows, target_size=model_inputs["original_size"])
        if scores.isnan().any():  # Comparisons with NaN are false, so the first label would win.
            raise InputError("The model's scores are NaN: its weights are damaged or overflow in this precision.")
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
        Save model and processor so that `pipeline("zero-shot-image-segmentation", model=save_directory)` loads them.

        Unlike the base class, this writes no code: transformers would then ask for `trust_remote_code` even if this
        package is installed.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


@contextmanager
def _in_eval_mode(model: Any) -> Iterator[None]:
    """Predict without dropout, then restore the mode: the pipeline may be called in the middle of a training."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _name_size_if_out_of_memory(height: int, width: int) -> Iterator[None]:
    """Replace an out-of-memory error by one that names the picture's size."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{NO_MEMORY} for a picture of {height} x {width} pixels: make it smaller.") from error


def _read_labels(candidate_labels: Sequence[str] | str) -> list[str]:
    return split_labels(candidate_labels) if isinstance(candidate_labels, str) else check_labels(candidate_labels)


def _select(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove some arguments from a dictionary and return those that were given."""
    return {name: kwargs.pop(name) for name in names if name in kwargs}


__all__ = ["TASK", "ZeroShotImageSegmentationPipeline"]
