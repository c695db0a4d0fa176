"""Processor of ZegCLIP: pictures and class names in, class maps out."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .input_error import InputError
from .names import (
    DEFAULT_PROMPT_TEMPLATES,
    UnknownWordsWarning,
    add_background,
    check_labels,
    check_templates,
    fill_templates,
    find_unknown_words,
    read_classes,
    words_before_name,
)

# Arguments of a tokenizer that would make something else of a name than one row from start to end token.
_NOT_FOR_NAMES = {"is_split_into_words", "text_pair", "text_target", "text_pair_target", "return_overflowing_tokens"}


class ZegClipProcessor(ProcessorMixin):
    r"""
    Wraps ZegCLIP's image processor and CLIP's tokenizer.

    Every class name is inserted into every template; the model averages the embeddings of a name's templates.

    Args:
        image_processor ([`ZegClipImageProcessor`] or [`ZegClipImageProcessorPil`]): Pictures and label maps.
        tokenizer ([`CLIPTokenizer`]): Text.
        prompt_templates (`list[str]`, *optional*, defaults to `["a photo of a {}"]`):
            Texts with exactly one `{}` each, which the class name replaces. The default, without a full stop, is that
            of the official single-template models.
    """

    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        prompt_templates: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.prompt_templates = check_templates(
            DEFAULT_PROMPT_TEMPLATES if prompt_templates is None else prompt_templates
        )
        if image_processor is not None and not hasattr(image_processor, "window_size"):
            raise InputError(
                f"A ZegClipProcessor needs a ZegClipImageProcessor, not a {type(image_processor).__name__}: for a "
                "plain CLIP use the pipeline, or zegclip.loading.load_processor."
            )
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: Sequence[str | Sequence[str]] | str | None = None,
        segmentation_maps: ImageInput | None = None,
        prompt_templates: Sequence[str] | str | None = None,
        background: bool | Sequence[str] | str = False,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Turn pictures and class names into the model's inputs.

        Args:
            images: One picture or several, in any form that the image processor accepts.
            text: Class names, as a list or as one comma-separated string. They apply to all pictures. A list in place
                of a name holds the names of one class.
            segmentation_maps: A label map for each picture.
            prompt_templates: Templates for this call, instead of the processor's.
            background: Names of what is none of the classes, or `True` for 26 usual ones. Their pixels get the id -1.
                A training-free model needs them if there is a single class, which would win every pixel.
            kwargs: Arguments of the image processor or the tokenizer, and `return_tensors="pt"` for tensors.

        Returns:
            With `images`: `pixel_values` `(batch, 3, height, width)` and, if PIL images were rotated by their EXIF
            orientation, `orientations` `(batch, 3)`, see the image processor. With `segmentation_maps`: `labels`
            `(batch, height, width)`. With `text`: `input_ids` and `attention_mask`, `(names * templates, length)`:
            all templates of the first name, then all of the second; and `num_templates`, by which the model finds the
            rows of a name. With classes of several names, or with background, also
            `class_of_name` `(names,)`.

        Raises:
            TypeError: For an argument that neither image processor nor tokenizer has.
            InputError: If neither pictures nor names are given, a name is not valid (see [`check_labels`]) or too
                long for the text tower, two names have the same tokens, or the image processor refuses a picture.
        """
        if images is None and text is None:
            raise InputError("Give images, text or both.")
        if images is None and segmentation_maps is not None:
            raise InputError("segmentation_maps need images.")
        self._check_arguments(kwargs)
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, segmentation_maps, **merged["images_kwargs"]))
        if text is not None:
            templates = check_templates(self.prompt_templates if prompt_templates is None else prompt_templates)
            names, class_of_name = add_background(*read_classes(text), background)
            data.update(self._tokenize(names, templates, **merged["text_kwargs"]))
            # A tensor among tensors: batches are often moved to a device value by value.
            numbers: dict[str, Any] = {"num_templates": len(templates)}
            if class_of_name != list(range(len(names))):
                numbers["class_of_name"] = class_of_name
            data.update(BatchFeature(numbers, tensor_type=merged["text_kwargs"].get("return_tensors")))
        return BatchFeature(data)

    def tokenize_names(
        self, names: Sequence[str] | str, prompt_templates: Sequence[str], config: Any, stacklevel: int = 3
    ) -> dict[str, list[list[int]]]:
        """
        Tokenize class names for a model, without padding.

        Args:
            names: See [`check_labels`].
            prompt_templates: Templates.
            config: The model's [`ZegClipConfig`].
            stacklevel: Of the warning.

        Returns:
            The token ids of each name in each template.

        Warns:
            UnknownWordsWarning: If a name or template has words outside of the model's vocabulary.

        Raises:
            InputError: If a name is not valid, see [`~ZegClipProcessor.__call__`], or the tokenizer does not match the
                model.
        """
        names = check_labels(names)
        unknown = find_unknown_words(names, config.vocabulary, prompt_templates, model="This model")
        if unknown is not None:
            warnings.warn(unknown, UnknownWordsWarning, stacklevel=stacklevel)
        rows = self._check_tokens(names, fill_templates(names, prompt_templates), self.tokenizer.model_max_length)
        largest, vocab_size = max(map(max, rows)), config.clip_config.text_config.vocab_size
        if largest >= vocab_size:
            raise InputError(
                f"The tokenizer does not match the model: it returns the token id {largest}, but the text tower has "
                f"{vocab_size} tokens."
            )
        remaining = iter(rows)
        return {name: [next(remaining) for _ in prompt_templates] for name in names}

    def _check_arguments(self, kwargs: dict[str, Any]) -> None:
        """Raise `TypeError` for an unknown argument, which transformers would only log."""
        groups = self.valid_processor_kwargs.__annotations__
        known = {name for group in groups.values() for name in getattr(group, "__annotations__", ())} | groups.keys()
        known |= self.image_processor.valid_kwargs.__annotations__.keys()
        given = {**kwargs, **{name: None for group in groups for name in kwargs.get(group) or {}}}
        for name in given.keys() - known:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}.")

    def _tokenize(self, names: list[str], templates: list[str], **kwargs: Any) -> dict[str, Any]:
        refused = [name for name in _NOT_FOR_NAMES if kwargs.get(name)]
        if refused or kwargs.get("add_special_tokens") is False:
            name = (*refused, "add_special_tokens")[0]
            raise InputError(f"{name}={kwargs[name]!r}: a name is one text, from start to end token.")
        prompts = fill_templates(names, templates)
        self._check_tokens(names, prompts, kwargs.get("max_length") or self.tokenizer.model_max_length)
        # Padding on the left would move the words to other positions.
        return self.tokenizer(prompts, **kwargs | {"split_special_tokens": True, "padding_side": "right"})

    def _check_tokens(self, names: list[str], prompts: list[str], limit: int) -> list[list[int]]:
        """Return the token ids; `InputError` for more tokens than `limit`, and for two names with the same tokens."""
        # Names are plain text: "<|endoftext|>" as a special token would hide the rest of the name from the text tower.
        rows = self.tokenizer(prompts, split_special_tokens=True, verbose=False)["input_ids"]
        num_templates = len(prompts) // len(names)
        name_of_tokens: dict[str, str] = {}
        for index, name in enumerate(names):
            rows_of_name = rows[index * num_templates : (index + 1) * num_templates]
            longest = max(map(len, rows_of_name))
            if longest > limit:  # Truncation would silently look for another class.
                raise InputError(
                    f"Class name {name!r} is too long: it has {longest} tokens with its template, and the limit is "
                    f"{limit}."
                )
            # Equal tokens mean equal scores, so the first of the two names would win every pixel.
            other = name_of_tokens.setdefault(str(rows_of_name), name)
            if other != name:
                raise InputError(
                    f"Class names {other!r} and {name!r} have the same tokens (the tokenizer may ignore case, for "
                    "instance): remove one of them."
                )
        return rows

    def text_prompt_ids(self) -> list[int]:
        """
        Return the token ids of the template's words, start and end token included, which initialise the text prompts
        of an adapter.

        Raises:
            InputError: If there are several templates, or the only one does not end with a space and the name.
        """
        return self.tokenizer(words_before_name(self.prompt_templates))["input_ids"]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """See [`ZegClipImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes=target_sizes, return_segmentation_scores=return_segmentation_scores
        )


# The names from `.names` are imported from here too.
__all__ = ["ZegClipProcessor"]
