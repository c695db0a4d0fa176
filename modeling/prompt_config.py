"""Configuration of prompt tuning as a PEFT method."""

import copy
import enum
from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from peft import PeftConfig

from .base_fingerprint import is_fingerprint
from .configuration_zegclip import ZegClipConfig
from .model_error import ModelError


class DeepPromptPeftType(str, enum.Enum):
    """PEFT's own enumeration is closed, so the method brings its own member."""

    DEEP_PROMPT = "DEEP_PROMPT"


@strict
@dataclass
class DeepPromptConfig(PeftConfig):
    """
    Configuration of deep prompts (ZegCLIP section 3.2; VPT-deep), spectral prompts (SPT-SEG) and text prompts (LDVC).

    Args:
        num_tokens: Visual prompt tokens per layer; ZegCLIP uses 10 for VOC and 100 for COCO-Stuff. 0: none.
        num_deep_layers: How many layers after the first get prompts of their own; each replaces the outputs of the
            prompts before it. `None`: all. `n > 0`: the first `n`; later layers see no prompts. `0`: the first
            layer's prompts are carried through all layers ("shallow"; no final norm). `-n`: only the last `n` layers
            have prompts.
        dropout: Dropout probability of the projected tokens, in [0, 1), drawn for each image.
        spectral_prompt: Whether patches also get a spectral prompt, one filter shared by all `spectral_layers`.
        spectral_layers: Indices of the layers whose incoming patches get it.
        spectral_grid_size: Rows and columns of patches that the filter is made for, those of the training crops; it
            is resized for others. `None`: `image_size // patch_size` of the first encoder that it is used for.
        double_class_embedding: Whether the class token enters the vision tower with the class embedding added twice,
            `2 * class_embedding + positions[0]`, as the official code of ZegCLIP and SPT-SEG computes it.
        text_prompts: What the text tower's prompts, one table per layer, replace. `None`: the text tower is frozen.
            `"whole"`: all tokens of the template, start and end included, followed by the name (LDVC's six tokens for
            "a photo of a"). `"words"`: the template's words alone, between the frozen start token and the name;
            initialised from the template's own states, the class embeddings start exactly at the frozen ones.
        text_prompt_ids: Token ids of the template, start and end included, as `ZegClipProcessor.text_prompt_ids` gives
            them. The number of prompts follows from it.
        text_prompt_init: `"template"`: prompts start as the hidden states with which `text_prompt_ids` enter each
            layer of the frozen text tower. `"random"`: from a normal distribution of standard deviation 0.02.
        target_modules: The encoders to wrap, by name or regular expression. Found by default.
        modules_to_save: Modules that are trained and saved beside the prompts. Defaults to the decode head.
        model_config: The adapter's part of the model's configuration (decode head, class names, templates, loss),
            written when it is saved. While the adapter is active, the model's configuration holds these fields and
            this one is `None`.
        base_fingerprint: Some weights of the CLIP that the adapter was trained on, to detect another one. Filled in.
        clip_model_name_or_path: Hub id of the base, where `base_model_name_or_path` names the adapter's own repository
            on the Hub. transformers' Auto classes and pipelines read the configuration and processor of whatever that
            names, and those of a plain CLIP would not do.
    """

    num_tokens: int = field(default=10, metadata={"help": "Prompt tokens per layer."})
    num_deep_layers: int | None = field(
        default=None,
        metadata={"help": "Layers after the first with prompts of their own; None: all, 0: shallow, -n: the last n."},
    )
    dropout: float | int = field(default=0.1, metadata={"help": "Dropout on the projected tokens."})
    spectral_prompt: bool = field(default=False, metadata={"help": "Whether patches get a spectral prompt."})
    spectral_layers: list[int] | tuple[int, ...] = field(
        default_factory=lambda: [0, 1], metadata={"help": "Layers whose incoming patches get the spectral prompt."}
    )
    spectral_grid_size: int | None = field(
        default=None, metadata={"help": "Side of the patch grid that the filter is made for; None: the encoder's."}
    )
    double_class_embedding: bool = field(
        default=False, metadata={"help": "Whether the class embedding is added twice, as in the official code."}
    )
    text_prompts: Literal["whole", "words"] | None = field(
        default=None, metadata={"help": "whole or words: what of the template has prompts; None: no text prompts."}
    )
    text_prompt_ids: list[int] | tuple[int, ...] | None = field(
        default=None, metadata={"help": "Token ids of the template that the text prompts stand for."}
    )
    text_prompt_init: Literal["template", "random"] = field(
        default="template", metadata={"help": "template or random: what the text prompts start from."}
    )
    target_modules: str | list[str] | set[str] | None = field(default=None, metadata={"help": "The encoders to wrap."})
    modules_to_save: list[str] | None = field(
        default_factory=lambda: ["decode_head"], metadata={"help": "Trained and saved beside the prompts."}
    )
    model_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Configuration of decode head, class names and loss; filled in."}
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
        self.active_in: ZegClipConfig | None = None
        """Configuration of the model in which this adapter is active; not a field, so it is not saved."""
        self.injected_into: str | None = None
        """Fingerprint of the base when the adapter was added to it; not a field, so it is not saved."""
        # Of a stored adapter; a new one takes that of whatever base it is added to.
        self.made_for = self.base_fingerprint
        if self.made_for is not None and not is_fingerprint(self.made_for):
            raise ModelError(f"base_fingerprint must be what an adapter was saved with, not {self.made_for!r}.")
        if self.num_tokens < 0:
            raise ModelError(f"num_tokens must be at least 0, not {self.num_tokens}.")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout must be in [0, 1), not {self.dropout}.")
        if self.spectral_grid_size is not None and self.spectral_grid_size < 1:
            raise ModelError(f"spectral_grid_size must be at least 1, not {self.spectral_grid_size}.")
        self.spectral_layers = list(self.spectral_layers)
        if self.spectral_prompt and not self.spectral_layers:
            raise ModelError("spectral_layers is empty: name a layer, or leave spectral_prompt off.")
        ids = self.text_prompt_ids or []
        if self.text_prompts is not None and (len(ids) <= 2 or min(ids) < 0):
            raise ModelError(
                "text_prompts need text_prompt_ids, the token ids of a template with start, end and at least one word "
                f"between them, not {ids}: take them from ZegClipProcessor.text_prompt_ids()."
            )

    def to_dict(self) -> dict[str, Any]:
        """
        As the parent's, with the current `model_config`.

        `PeftModel.save_pretrained` writes no other file than this, and `PeftConfig.from_pretrained` reads no other: so
        the fields are stored here, and not only in a `config.json`.
        """
        described = self.active_in.describe_head() if self.active_in is not None else self.model_config
        return super().to_dict() | {"model_config": copy.deepcopy(described)}

    def store_head_config(self) -> None:
        """Take the adapter's fields out of the model's configuration, before another adapter becomes active."""
        self.model_config = self.to_dict()["model_config"]
        self.active_in = None

    def apply_head_config(self, config: ZegClipConfig) -> None:
        """Move the adapter's fields into the configuration of the model in which it becomes active."""
        config.apply_head(self.model_config or {})
        self.model_config, self.active_in = None, config

    def prompted_layers(self, num_layers: int) -> range:
        """Return the indices of the layers that get visual prompts of their own, of an encoder with `num_layers`."""
        if self.num_tokens == 0:
            return range(0)
        deep = num_layers - 1 if self.num_deep_layers is None else self.num_deep_layers
        if not -num_layers <= deep < num_layers:
            raise ModelError(f"num_deep_layers={deep} does not fit an encoder of {num_layers} layers.")
        return range(num_layers + deep, num_layers) if deep < 0 else range(deep + 1)

    def filtered_layers(self, num_layers: int) -> set[int]:
        """Return the indices of the layers whose patches get the spectral prompt, of an encoder with `num_layers`."""
        if not self.spectral_prompt:
            return set()
        for index in self.spectral_layers:
            if not 0 <= index < num_layers:
                raise ModelError(f"spectral_layers names layer {index}, but the encoder has 0 to {num_layers - 1}.")
        return set(self.spectral_layers)


__all__ = ["DeepPromptConfig", "DeepPromptPeftType"]
