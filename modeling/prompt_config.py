"""Configuration of prompt tuning as a PEFT method."""

import enum
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

from peft import PeftConfig

from .base_fingerprint import is_fingerprint

NUMBERS: dict[str, tuple[type, ...]] = {
    "num_tokens": (int,),
    "num_deep_layers": (int, NoneType),
    "dropout": (int, float),
    "spectral_grid_size": (int, NoneType),
}
"""Types of the fields that are numbers."""


class DeepPromptPeftType(str, enum.Enum):
    """PEFT's own enumeration is closed, so the method brings its own member."""

    DEEP_PROMPT = "DEEP_PROMPT"


@dataclass
class DeepPromptConfig(PeftConfig):
    """
    Configuration of deep prompts (ZegCLIP section 3.2; VPT-deep), spectral prompts (SPT-SEG) and text prompts (LDVC).

    Args:
        num_tokens: Visual prompt tokens per layer; ZegCLIP uses 10 for VOC and 100 for COCO-Stuff. 0: none.
        num_deep_layers: How many layers after the first get prompts of their own, where each layer's prompt outputs
            are discarded and replaced. `None`: all. `n > 0`: the first `n`; later layers see no prompts. `0`: the
            first layer's prompts are carried through all layers ("shallow"; no final norm). `-n`: only the last `n`
            layers have prompts.
        dropout: Dropout on the projected tokens, drawn for each picture.
        spectral_prompt: Whether patches also get a spectral prompt, one filter shared by all `spectral_layers`.
        spectral_layers: Indices of the layers whose incoming patches get it.
        spectral_grid_size: Rows and columns of patches that the filter is made for, those of the training crops; it
            is resized for others. `None`: `image_size // patch_size` of the first encoder it is used for, filled in.
        double_class_embedding: Whether the class token enters the vision tower with the class embedding added twice,
            `2 * class_embedding + positions[0]`, as the official code of ZegCLIP and SPT-SEG computes it.
        text_prompts: What the text tower's prompts, one table per layer, stand for. `None`: the text tower is frozen.
            `"whole"`: all tokens of the template, start and end included, with the name behind them (LDVC's six tokens
            for "a photo of a"). `"words"`: the template's words alone, between the frozen start token and the name;
            from the template's own states this starts exactly at the frozen embeddings.
        text_prompt_ids: Token ids of the template, start and end included, as `ZegClipProcessor.text_prompt_ids` gives
            them. The number of prompts follows from it.
        text_prompt_init: `"template"`: prompts start as the states with which `text_prompt_ids` enter each layer of
            the frozen text tower. `"random"`: from a normal distribution of deviation 0.02.
        target_modules: The encoders to wrap, by name or regular expression. Found by default.
        modules_to_save: Trained and saved beside the prompts. Defaults to the decode head.
        model_config: Filled in: the decode head's configuration, so that the adapter also loads onto a plain CLIP.
        base_fingerprint: Filled in: some weights of the CLIP that the adapter was made for, to notice another.
        clip_model_name_or_path: Hub id of the base, where `base_model_name_or_path` names the adapter's own repository
            on the Hub. transformers' Auto classes and pipelines read the configuration and processor of whatever that
            names, and those of a plain CLIP would not do.
    """

    num_tokens: int = field(default=10, metadata={"help": "Prompt tokens per layer."})
    num_deep_layers: int | None = field(
        default=None,
        metadata={"help": "Layers after the first with prompts of their own; None: all, 0: shallow, -n: the last n."},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout on the projected tokens."})
    spectral_prompt: bool = field(default=False, metadata={"help": "Whether patches get a spectral prompt."})
    spectral_layers: list[int] = field(
        default_factory=lambda: [0, 1], metadata={"help": "Layers whose incoming patches get the spectral prompt."}
    )
    spectral_grid_size: int | None = field(
        default=None, metadata={"help": "Side of the patch grid that the filter is made for; None: the encoder's."}
    )
    double_class_embedding: bool = field(
        default=False, metadata={"help": "Whether the class embedding is added twice, as in the official code."}
    )
    text_prompts: str | None = field(
        default=None, metadata={"help": "whole or words: what of the template has prompts; None: no text prompts."}
    )
    text_prompt_ids: list[int] | None = field(
        default=None, metadata={"help": "Token ids of the template that the text prompts stand for."}
    )
    text_prompt_init: str = field(
        default="template", metadata={"help": "template or random: what the text prompts start from."}
    )
    target_modules: str | list[str] | None = field(default=None, metadata={"help": "The encoders to wrap."})
    modules_to_save: list[str] | None = field(
        default_factory=lambda: ["decode_head"], metadata={"help": "Trained and saved beside the prompts."}
    )
    model_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Configuration of the model without its CLIP; filled in."}
    )
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Some weights of the CLIP that the adapter was made for; filled in."}
    )
    clip_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id of the base, where the adapter's own repository stands for it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DeepPromptPeftType.DEEP_PROMPT
        # Of a stored adapter; one that is fresh takes that of whatever base it is put on.
        self.made_for = self.base_fingerprint
        if self.made_for is not None and not is_fingerprint(self.made_for):
            raise ValueError(f"base_fingerprint must be what an adapter was saved with, not {self.made_for!r}.")
        for name in ("spectral_prompt", "double_class_embedding"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        for name, kinds in NUMBERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"{name} must be a {'' if float in kinds else 'whole '}number, not {value!r}.")
        if self.num_tokens < 0:
            raise ValueError(f"num_tokens must be at least 0, not {self.num_tokens}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}.")
        if self.spectral_grid_size is not None and self.spectral_grid_size < 1:
            raise ValueError(f"spectral_grid_size must be at least 1, not {self.spectral_grid_size}.")
        layers = self.spectral_layers
        if not isinstance(layers, (list, tuple)) or not all(type(index) is int for index in layers):
            raise ValueError(f"spectral_layers must be a list of layer numbers, not {layers!r}.")
        self.spectral_layers = list(layers)
        if self.spectral_prompt and not layers:
            raise ValueError("spectral_layers is empty: name a layer, or leave spectral_prompt off.")
        if self.text_prompts not in (None, "whole", "words"):
            raise ValueError(f'text_prompts must be "whole", "words" or None, not {self.text_prompts!r}.')
        if self.text_prompt_init not in ("template", "random"):
            raise ValueError(f'text_prompt_init must be "template" or "random", not {self.text_prompt_init!r}.')
        ids = self.text_prompt_ids
        if self.text_prompts is not None and not (
            isinstance(ids, (list, tuple)) and len(ids) > 2 and all(type(item) is int and item >= 0 for item in ids)
        ):
            raise ValueError(
                "text_prompts need text_prompt_ids, a list of the template's token ids with start and end and a word "
                f"or more between them, not {ids!r}: take it from ZegClipProcessor.text_prompt_ids()."
            )

    def prompted_layers(self, num_layers: int) -> range:
        """Return the indices of the layers that get visual prompts of their own, of an encoder with `num_layers`."""
        if self.num_tokens == 0:
            return range(0)
        deep = num_layers - 1 if self.num_deep_layers is None else self.num_deep_layers
        if not -num_layers <= deep < num_layers:
            raise ValueError(f"num_deep_layers={deep} does not fit an encoder of {num_layers} layers.")
        return range(num_layers + deep, num_layers) if deep < 0 else range(deep + 1)

    def filtered_layers(self, num_layers: int) -> set[int]:
        """Return the indices of the layers whose patches get the spectral prompt, of an encoder with `num_layers`."""
        if not self.spectral_prompt:
            return set()
        for index in self.spectral_layers:
            if not 0 <= index < num_layers:
                raise ValueError(f"spectral_layers names layer {index}, but the encoder has 0 to {num_layers - 1}.")
        return set(self.spectral_layers)


__all__ = ["DeepPromptConfig", "DeepPromptPeftType"]
