"""The pipeline `zero-shot-image-segmentation`: pictures and class names in, one mask per name out."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import IOBase
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.pipelines.base import Pipeline
from transformers.utils import PROCESSOR_NAME

from .image_processing_base import array_size
from .image_reading import EXIF_WARNING, exif_frame, load_rgb
from .input_error import InputError
from .merging import best_of_names, merge_masks, merge_scores
from .name_encoder import NameEncoder, in_eval_mode
from .names import add_background, read_classes
from .processing_zegclip import ZegClipProcessor
from .windows import NO_MEMORY, BatchSize, is_out_of_memory, predict_windows

TASK = "zero-shot-image-segmentation"
# One picture, not several, although some of them can be iterated over.
SINGLE = (str, bytes, os.PathLike, Mapping, Image.Image, np.ndarray, torch.Tensor)


class ZeroShotImageSegmentationPipeline(Pipeline):
    """
    Segment pictures into classes given by name.

    ```python
    >>> from transformers import pipeline
    >>> segmenter = pipeline("zero-shot-image-segmentation", model=PATH)
    >>> segmenter("street.jpg", candidate_labels=["car", "tree"])
    [{"label": "car", "score": 0.93, "mask": <PIL.Image.Image mode=L>}, {"label": "tree", ...}]
    ```

    The model may also be a plain CLIP, which segments without training (NACLIP).

    Every pixel is assigned to the label with the highest score. Names are encoded once per call, so pass many pictures
    with the same names as one list or generator. Each picture is processed in overlapping windows, with the size and
    stride of the image processor.
    """

    _load_processor: Any = None  # If it fails, the constructor tries again and says why.
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    model: Any
    processor: ZegClipProcessor  # Named here, the processor's code is published with the model's.
    names_cache_folder: str | None = None
    """Folder in which embeddings of names are kept for the next time, see [`NameEncoder`]."""
    show_progress = False
    """Whether to show a progress bar for encoding names, after some seconds, on a terminal."""
    _from_clip: ClassVar[Callable[[Any, Any], tuple[Any, Any]] | None] = None
    """Turns a plain CLIP and its processor into ours; registration sets it, code that came with a model has none."""
    _load_stored_processor: ClassVar[Callable[..., Any] | None] = None
    """Loads the processor of a folder; set likewise."""

    def __init__(
        self,
        model: Any,
        *args: Any,
        processor: Any = None,
        image_processor: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if processor is None:
            processor = self._find_processor(model)
        from_clip = type(self)._from_clip
        if model.config.model_type == "clip" and from_clip is not None:
            model, processor = from_clip(model, processor)
        super().__init__(model, *args, processor=processor, **kwargs)
        if self.model.config.model_type != "zegclip":
            raise InputError(
                f"This pipeline needs a CLIP, such as openai/clip-vit-base-patch16, not a {type(self.model).__name__}."
            )
        if not hasattr(self.processor, "prompt_templates"):
            raise InputError(f"This pipeline needs a ZegClipProcessor, not {type(self.processor).__name__}.")
        for name in ("dtype", "torch_dtype"):  # of the model; with it, a tokenizer could not be saved
            self.processor.tokenizer.init_kwargs.pop(name, None)
        if image_processor is not None or tokenizer is not None:
            self.processor = type(self.processor)(
                image_processor or self.processor.image_processor,
                tokenizer or self.processor.tokenizer,
                self.processor.prompt_templates,
            )
            self.image_processor, self.tokenizer = self.processor.image_processor, self.processor.tokenizer

    @classmethod
    def _find_processor(cls, model: Any) -> Any:
        """Load the processor of a model, which may be a folder with no more than a tokenizer."""
        place = model.name_or_path
        adapter = (getattr(model, "peft_config", None) or {}).get(getattr(model, "_active_name", lambda: None)())
        own = getattr(adapter, "origin", None)  # the adapter's folder
        if cls._load_stored_processor is not None and own and os.path.isfile(os.path.join(own, PROCESSOR_NAME)):
            return cls._load_stored_processor(own)
        if not place:
            raise InputError(
                "This pipeline needs a processor=, as the model comes from no folder and not from the Hub."
            )
        if cls._load_stored_processor is not None and os.path.isdir(place):
            # What was trained on a plain CLIP does not see pictures as that does without training.
            return cls._load_stored_processor(place, for_training=hasattr(adapter, "injected_into"))
        return ZegClipProcessor.from_pretrained(place, revision=getattr(model.config, "_commit_hash", None))

    def __call__(self, images: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:
        """
        Segment one picture or several.

        Args:
            images:
                A path, URL, base64 string, PIL image, or an array or tensor as the image processor takes it; a
                dictionary of such an `image` and its own `candidate_labels`; or a list, generator or data set of any
                of them, or an array with a batch axis. The EXIF orientation is applied, with a warning for a PIL
                image.
            candidate_labels: Class names, as a list, or in one string, separated by commas or line breaks. A list in
                place of a name holds synonyms: the first is the label, and the score of the class is the best of its
                names'. In one string, slashes separate them: `"cat/kitten, tree"`.
            hypothesis_template (`str` or `list[str]`, *optional*):
                Template or templates with one `{}` for the name. Defaults to those of the model's configuration, which
                are the active adapter's; it warns if the processor has others.
            threshold (`float`, *optional*, defaults to 0.0):
                Pixels whose best score is lower are assigned to no label.
            background (`bool` or `list[str]`, *optional*):
                Names of what is none of the labels, or `True` for 26 usual ones. They compete for the pixels, and
                those that they win get no label. By default only where a single label would win every pixel: for a
                training-free model, or with `training_free_weight`, as its scores compare names.
            output_type (`str`, *optional*, defaults to `"masks"`):
                `"masks"` for one mask per label, `"class_map"` for one map of all labels.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the scores of all labels at every pixel too.
            refine (`bool`, *optional*, defaults to `False`):
                Whether masks follow the outlines in the picture (PAMR); it takes longer.
            training_free_weight (`float`, *optional*):
                Weight, in [0, 1], of what the CLIP says without training (NACLIP) in the scores of a trained model. It
                takes a second pass. Defaults to that of the model's configuration.
            window_size (`int`, *optional*):
                Side of the windows in pixels of the resized picture; `None` for the whole picture at once. Defaults to
                that of the image processor.
            window_stride (`int`, *optional*):
                Distance between windows. Defaults to that of the image processor or, if only `window_size` is given,
                to the same overlap in proportion.
            batch_size (`int`, *optional*, defaults to 8):
                Windows per forward pass; halved, with a warning, when memory runs out. Pictures, whose sizes may
                differ, are read one at a time.
            timeout (`float`, *optional*): Seconds to wait for a URL; no limit by default.
            kwargs: The arguments above, and `num_workers` for reading pictures.

        Returns:
            For one picture, a list with a dictionary for each label in the given order, also for labels with an empty
            mask: `label`; `score`, the mean score inside the mask, in [0, 1], and 0.0 for an empty mask; `mask`, a
            PIL image of mode `L` and of the picture's size, 255 where the label has the highest score and 0 elsewhere;
            and, if asked for, `segmentation_scores`, `(height, width)` float32 in [0, 1].

            As a class map, a dictionary of `labels`; `segmentation`, `(height, width)` int64, the index of the label
            of each pixel, or -1; `scores`, `(height, width)` float32, the best score of each pixel, also where it is
            below the threshold; and, if asked for, `segmentation_scores`, `(labels, height, width)`.

            For a list of pictures, a list of these; for a generator or data set, an iterator over them.

        Warns:
            UnknownWordsWarning: If the model has a closed vocabulary and a name has other words.

        Raises:
            InputError: If labels, picture or window geometry are not valid, the tokenizer does not match the model, or
                the scores are NaN.
            MemoryError: If a picture is too large for the memory. A generator can continue with the next picture.
        """
        templates = kwargs.pop("hypothesis_template", self._forward_params.get("hypothesis_template"))
        settings = {**self._preprocess_params, **kwargs}
        others = {name: settings[name] for name in ("background", "training_free_weight") if name in settings}
        names = NameEncoder(self.model, self.processor, templates, self.names_cache_folder, self.show_progress)
        if candidate_labels is None:
            candidate_labels = self._preprocess_params.get("candidate_labels")
        if candidate_labels is not None:
            if isinstance(candidate_labels, Iterator):
                candidate_labels = list(candidate_labels)
            with self.device_placement():
                names.encode(self._read_classes(candidate_labels, **others)[0])  # errors of this call
        # Shared by all pictures of the call: a batch size that ran out of memory is not tried again.
        batch_size = kwargs.pop("batch_size", None)
        if batch_size is None:
            batch_size = 8 if self._batch_size is None else self._batch_size
        if isinstance(images, tuple) or getattr(images, "ndim", 0) == 4:
            images = list(images)
        if isinstance(images, list) and not images:
            return []
        if isinstance(images, Iterable) and not isinstance(images, (*SINGLE, list, Dataset, IOBase)):
            images = (image for image in images)
        return super().__call__(
            images,
            candidate_labels=candidate_labels,
            names=names,
            windows=BatchSize(batch_size),
            batch_size=1,
            **kwargs,
        )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = _select(kwargs, "timeout", "candidate_labels", "background")
        if "training_free_weight" in kwargs:
            preprocess["training_free_weight"] = kwargs["training_free_weight"]
        forward = _select(kwargs, "names", "windows", "hypothesis_template", "window_size", "window_stride")
        forward |= _select(kwargs, "refine", "training_free_weight", "return_segmentation_scores")
        postprocess = {
            name: value for name, value in _select(kwargs, "threshold", "output_type").items() if value is not None
        }
        if postprocess.get("output_type", "masks") not in ("masks", "class_map"):
            raise InputError(f"output_type must be 'masks' or 'class_map', not {postprocess['output_type']!r}.")
        _check_share("threshold", postprocess.get("threshold"))
        _check_share("training_free_weight", forward.get("training_free_weight"))
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

    def blend_weight(self, given: float | None = None) -> float:
        """The weight of what the CLIP says without training: the given one, or that of the model's configuration."""
        _check_share("training_free_weight", given)
        return self.model.config.blend_weight if given is None else given

    def _read_classes(
        self, labels: Any, background: Any = None, training_free_weight: float | None = None
    ) -> tuple[list[str], list[int]]:
        """All names, and the class of each, -1 for the background."""
        names, class_of_name = read_classes(labels)
        if background is None:
            compares = self.model.config.score_function == "softmax" or self.blend_weight(training_free_weight) > 0
            background = compares and not any(class_of_name)
        return add_background(names, class_of_name, background, self.model.config.vocabulary)

    def preprocess(
        self,
        image: Any,
        timeout: float | None = None,
        candidate_labels: Any = None,
        background: Any = None,
        training_free_weight: float | None = None,
    ) -> dict[str, Any]:
        """Read and resize one picture: `pixel_values` `(1, 3, height, width)`, its `original_size` and `classes`."""
        if isinstance(image, Mapping):
            if "image" not in image:
                raise InputError(f"A picture with labels of its own needs the key 'image', unlike {list(image)}.")
            own = image.get("candidate_labels")
            if unknown := image.keys() - {"image", "candidate_labels"}:
                raise InputError(f"A picture's own settings are candidate_labels alone, not {min(unknown)!r}.")
            image, candidate_labels = image["image"], candidate_labels if own is None else own
        if candidate_labels is None:
            raise InputError("candidate_labels is missing: give the names of the classes to segment.")
        if isinstance(image, (np.ndarray, torch.Tensor)):
            picture: Any = image
            size = array_size(image)
        else:
            picture = load_rgb(image, timeout=timeout)
            size = (picture.height, picture.width)
        if isinstance(image, Image.Image) and exif_frame(image)[0] != 1:
            warnings.warn(EXIF_WARNING, stacklevel=2)
        with _name_size_if_out_of_memory(*size):
            inputs = self.processor(images=picture, return_tensors="pt").to(self.dtype)
        return {
            "pixel_values": inputs["pixel_values"],
            "original_size": size,
            "classes": self._read_classes(candidate_labels, background, training_free_weight),
        }

    def _forward(
        self,
        model_inputs: dict[str, Any],
        names: NameEncoder,
        windows: BatchSize,
        refine: bool = False,
        training_free_weight: float | None = None,
        return_segmentation_scores: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:
        """
        The best label's index, -1 for background, and its score at every pixel of the original picture; and all scores
        if asked for.
        """
        name_list, class_of_name = model_inputs["classes"]
        pixel_values = model_inputs["pixel_values"]
        geometry = {
            "window_size": settings.get("window_size", self.processor.image_processor.window_size),
            "stride": settings.get("window_stride", self.processor.image_processor.window_stride),
            "batch_size": windows,
        }
        class_embeds = names.encode(name_list)
        blend = None
        with in_eval_mode(self.model):
            logits = predict_windows(self.model, pixel_values, class_embeds, **geometry)
            weight = self.blend_weight(training_free_weight)
            if weight and logits.score_function == "softmax":
                raise InputError("training_free_weight is for trained models: this one is training-free already.")
            if weight:
                alone = names.encode(name_list, with_prompts=False)
                others = predict_windows(self.model.get_training_free_logits, pixel_values, alone, **geometry)
                blend = others, weight
        size, picture = model_inputs["original_size"], pixel_values[0] if refine else None
        of_class: dict[str, torch.Tensor] = {}
        with _name_size_if_out_of_memory(*size):
            ids, scores = merge_masks(logits, size, blend=blend, picture=picture)
            class_ids = torch.tensor(class_of_name, device=ids.device)
            if return_segmentation_scores:
                all_scores = merge_scores(logits, size, blend=blend, picture=picture)
                of_class["segmentation_scores"] = best_of_names(all_scores, class_ids)
        labels = [name_list[class_of_name.index(index)] for index in range(max(class_of_name) + 1)]
        return {"ids": class_ids[ids], "scores": scores, "labels": labels} | of_class

    def postprocess(
        self, model_outputs: dict[str, Any], threshold: float = 0.0, output_type: str = "masks"
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """One dictionary per label, or one for all."""
        scores = model_outputs["scores"].numpy()
        ids = np.where(scores < threshold, -1, model_outputs["ids"].numpy())  # -1 is background
        of_class = model_outputs.get("segmentation_scores")
        if output_type == "class_map":
            result = {"labels": model_outputs["labels"], "segmentation": ids, "scores": scores}
            return result if of_class is None else result | {"segmentation_scores": of_class.numpy()}
        results: list[dict[str, Any]] = []
        for index, label in enumerate(model_outputs["labels"]):
            inside = ids == index
            results.append(
                {
                    "label": label,
                    "score": float(scores[inside].mean(dtype=np.float64)) if inside.any() else 0.0,
                    "mask": Image.fromarray(inside.astype(np.uint8) * 255),
                }
            )
            if of_class is not None:
                results[-1]["segmentation_scores"] = of_class[index].numpy()
        return results

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Save model and processor so that `pipeline("zero-shot-image-segmentation", model=save_directory)` loads them.

        Unlike the base class, this writes no code: transformers would then ask for `trust_remote_code` even if this
        package is installed.
        """
        own = {"processor": self.processor} if kwargs.get("push_to_hub") else {}
        self.model.save_pretrained(save_directory, **own | kwargs)
        self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload model and processor as the model's `push_to_hub`, which takes the same arguments."""
        return self.model.push_to_hub(repo_id, **{"processor": self.processor} | kwargs)


@contextmanager
def _name_size_if_out_of_memory(height: int, width: int) -> Iterator[None]:
    """Replace an out-of-memory error by one that names the picture's size."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{NO_MEMORY} for a picture of {height} x {width} pixels: make it smaller.") from error


def _check_share(name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise InputError(f"{name} must be a number between 0 and 1, not {value!r}.")


def _select(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove some arguments from a dictionary and return those that were given."""
    return {name: kwargs.pop(name) for name in names if name in kwargs}


__all__ = ["TASK", "ZeroShotImageSegmentationPipeline"]
