"""Processor of ZegCLIP: pictures and class names in, class maps out."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

DEFAULT_PROMPT_TEMPLATES = ("a photo of a {}",)
_MOST_NAMED = 20


def check_labels(labels: Sequence[str]) -> list[str]:
    """
    Checks a list of class names.

    Args:
        labels: Class names.

    Returns:
        The names without surrounding white space, in the given order.

    Raises:
        ValueError: If `labels` is not a list or tuple, is empty, or has a name that is not a string, is no valid
            Unicode, is blank or comes twice; the sentence names it.
    """
    if not isinstance(labels, (list, tuple)):
        raise ValueError(f"Class names must be a list of strings, not {labels!r}.")
    if not labels:
        raise ValueError("The list of class names is empty; give at least one name.")
    names: list[str] = []
    for position, label in enumerate(labels, start=1):
        if not isinstance(label, str):
            raise ValueError(f"Class name {position} is not a string: {label!r}.")
        name = label.strip()
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # half of a pair, which no tokenizer takes
            raise ValueError(f"Class name {position} is not valid Unicode text: {label!r}.")
        if not name:
            raise ValueError(f"Class name {position} is blank.")
        if name in names:
            raise ValueError(f"Class name {name!r} comes twice.")
        names.append(name)
    return names


class UnknownWordsWarning(UserWarning):
    """A model is asked for names with words that its text tower was never trained on."""


def find_unknown_words(
    labels: Sequence[str],
    vocabulary: Sequence[str] | None,
    prompt_templates: Sequence[str] = (),
    model: str = "this model",
) -> str | None:
    """
    Describes which names a model cannot know, whose text tower was trained on a closed list of words.

    Args:
        labels: Class names.
        vocabulary: The list, the configuration's field of this name; `None` for an open one, which knows every word.
        prompt_templates: Texts that the names are put into.
        model: What the sentence calls the model.

    Returns:
        One sentence, or `None` where every word is known.
    """
    if vocabulary is None:
        return None
    known = {word.lower() for word in vocabulary}

    def is_known(text: str) -> bool:
        words = set(re.findall(r"\w+", text.lower()))
        return bool(words) and words <= known and not re.search(r"[^\w\s]", re.sub(r"\b-\b", " ", text))

    unknown = [repr(text) for text in (*labels, *prompt_templates) if not is_known(text.replace("{}", " "))]
    if not unknown:
        return None
    more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
    return (
        f"{model} cannot know {', '.join(unknown[:_MOST_NAMED])}{more}, so its answer there means nothing; it was "
        f"trained on these words alone: {', '.join(vocabulary)}."
    )


class ZegClipProcessor(ProcessorMixin):
    r"""
    Wraps ZegCLIP's image processor and CLIP's tokenizer.

    Every class name is put into every template; the model averages the embeddings of a name's templates.

    Args:
        image_processor ([`ZegClipImageProcessor`] or [`ZegClipImageProcessorPil`]): Pictures and label maps.
        tokenizer ([`CLIPTokenizer`]): Text.
        prompt_templates (`list[str]`, *optional*, defaults to `["a photo of a {}"]`):
            Texts with exactly one `{}` each, where the class name goes. The default, without a full stop, is that of
            the official single-template models.
    """

    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        prompt_templates: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.prompt_templates = list(DEFAULT_PROMPT_TEMPLATES if prompt_templates is None else prompt_templates)
        if not self.prompt_templates:
            raise ValueError("prompt_templates is empty; give at least one template such as 'a photo of a {}'.")
        for template in self.prompt_templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise ValueError(
                    f"A prompt template needs exactly one '{{}}' for the class name, unlike {template!r}."
                )
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: Sequence[str] | None = None,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Turns pictures and class names into the model's inputs.

        Args:
            images: One picture or several, as the image processor takes them.
            text: Class names. They apply to all pictures.
            segmentation_maps: A label map for each picture.
            kwargs: For the image processor or the tokenizer, and `return_tensors="pt"` for tensors.

        Returns:
            With `images`: `pixel_values` `(batch, 3, height, width)` and, where PIL images were turned upright by
            their EXIF orientation, `orientations` `(batch, 3)`, see the image processor. With `segmentation_maps`:
            `labels` `(batch, height, width)`. With `text`: `input_ids` and `attention_mask`,
            `(names * templates, length)`: all templates of the first name, then all of the second.

        Raises:
            ValueError: If there is neither picture nor name, a name is not valid (see [`check_labels`]) or too long
                for the text tower, two names have the same tokens, or the image processor refuses a picture.
        """
        if images is None and text is None:
            raise ValueError("Give images, text or both.")
        if images is None and segmentation_maps is not None:
            raise ValueError("segmentation_maps belong to images, but there are none.")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, segmentation_maps, **merged["images_kwargs"]))
        if text is not None:
            data.update(self._tokenize(check_labels(text), **merged["text_kwargs"]))
        return BatchFeature(data)

    def _tokenize(self, names: list[str], **kwargs: Any) -> dict[str, Any]:
        # Not str.format: a name may have braces of its own.
        prompts = [template.replace("{}", name) for name in names for template in self.prompt_templates]
        limit = kwargs.get("max_length") or self.tokenizer.model_max_length
        # A name is text alone: with "<|endoftext|>" in it, the text tower would silently not see the rest.
        kwargs["split_special_tokens"] = True
        kwargs["padding_side"] = "right"  # On the left it would move the words to other positions.
        rows = self.tokenizer(prompts, split_special_tokens=True, verbose=False)["input_ids"]
        for index, token_ids in enumerate(rows):
            # Cutting a name short would silently look for another class.
            if len(token_ids) > limit:
                name = names[index // len(self.prompt_templates)]
                raise ValueError(
                    f"Class name {name!r} is too long: with its template it has {len(token_ids)} tokens, but at most "
                    f"{limit} are allowed."
                )
        # Two names of the same tokens have the same scores, so the first of them would get all pixels.
        known: dict[str, str] = {}
        templates = len(self.prompt_templates)
        for index, name in enumerate(names):
            other = known.setdefault(str(rows[index * templates : (index + 1) * templates]), name)
            if other != name:
                raise ValueError(
                    f"Class names {other!r} and {name!r} are the same to the tokenizer (it may not look at case, for "
                    "instance): leave out one of them."
                )
        return self.tokenizer(prompts, **kwargs)

    def text_prompt_ids(self) -> list[int]:
        """
        Return the token ids of the template's words, start and end included, for the text prompts of an adapter.

        Raises:
            ValueError: If there are several templates, or the only one does not end with the name, after a space: text
                prompts stand before the name, and one table of them cannot stand for many templates.
        """
        words, _, behind = self.prompt_templates[0].partition("{}")
        if len(self.prompt_templates) > 1 or behind or not words.strip() or not words[-1].isspace():
            raise ValueError(
                "Text prompts stand for one template that ends with the name, such as 'a photo of a {}'; "
                f"prompt_templates is {self.prompt_templates}."
            )
        return self.tokenizer(words.strip())["input_ids"]

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


__all__ = [
    "DEFAULT_PROMPT_TEMPLATES",
    "UnknownWordsWarning",
    "ZegClipProcessor",
    "check_labels",
    "find_unknown_words",
]
