"""Configuration of ZegCLIP-family models."""

import copy
import difflib
import math
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import interval, probability

from .heads import DECODE_HEADS
from .model_error import ModelError
from .stored_adapter import StoredAdapter

at_least_1, at_least_0 = interval(min=1), interval(min=0)
positive = interval(min=0, max=math.inf, exclude_min=True, exclude_max=True)
finite_weight = interval(min=0, max=math.inf, exclude_max=True)


@strict
class ZegClipConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ZegClipForSemanticSegmentation`]: a CLIP model, a decode head and a loss.

    The defaults are those of ZegCLIP (CVPR 2023) with ViT-B/16. Prompts are not part of it: they live in the adapter
    ([`DeepPromptConfig`]), so one CLIP serves several tasks.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            The wrapped CLIP. Defaults to ViT-B/16 at 512x512. A plain CLIP `config.json` is accepted wherever this
            configuration is read from, and becomes this field.
        dense_attention (`str`, defaults to `"plain"`):
            How the last layer of the vision tower attends where no prompts are active: `"plain"` is CLIP's own
            attention; `"maskclip"`, `"sclip"`, `"clearclip"` and `"naclip"` are training-free ways to patches that
            match class names, for the `"similarity"` head or, as an ablation, any other.
        naclip_sigma (`float`, defaults to 5.0): Standard deviation of NACLIP's neighbourhood, in patches.
        similarity_scale (`float`, defaults to 40.0):
            Factor of the cosines of the `"similarity"` head before their softmax; 40 in NACLIP and SCLIP, 50 in
            ClearCLIP.
        training_free_weight (`float`, defaults to 0.0):
            Weight, in [0, 1], of what the CLIP says without training (NACLIP) in the scores of a trained head, where
            pipeline, commands and evaluation are not given another. The model's `forward` returns the trained logits.
        decode_head_type (`str`, defaults to `"zegclip"`):
            `"zegclip"`: relationship descriptor and text-to-pixel cross-attention (paper sections 3.3 and 3.4);
            `"spectral"`: the same descriptor, and layers that split patches into high and low frequencies (SPT-SEG);
            `"consensus"`: the same descriptor, and layers in which patches attend to similar windows and to the
            classes (LDVC);
            `"similarity"`: no parameters, the cosine of patch and class embedding (training-free). Its scores are a
            softmax over all names, those of the others a sigmoid for each name.
        descriptor (`list[str]`, defaults to `["product", "text"]`):
            What is concatenated and projected to a class query: `"product"` is the global image embedding times the
            class embedding, `"text"` the class embedding itself, `"difference"` the absolute difference of the two.
            `["text"]` is the ablation without descriptor.
        num_decoder_layers (`int`, defaults to 3): Layers of the decode head; LDVC has 2.
        decoder_attention_heads (`int`, defaults to 8): Heads of the decode head's attention.
        decoder_ffn_dim (`int`, defaults to 2048): Width of the decode head's feed-forward layers.
        decoder_dropout (`float`, defaults to 0.1): Dropout of the decode head, in [0, 1).
        decoder_window_size (`int`, defaults to 3):
            Side, in patches, of the windows of the spectral head, whose means are its low frequencies, and of the
            consensus head; LDVC's are 4.
        decoder_low_frequency_heads (`int`, defaults to 7):
            How many of the spectral head's attention heads attend to low frequencies; the others work within windows.
        decoder_top_k (`int`, defaults to 16):
            How many windows each window of the consensus head attends to; 0 leaves its self-attention out.
        out_indices (`list[int]`, defaults to `[7, 11]`):
            Layers of the vision tower, counted from 0, whose hidden states enter the consensus head: one for each of
            its layers, in their order.
        decode_head_init (`str`, defaults to `"default"`):
            `"default"`: PyTorch's initialisation, the same values in every layer, as the official training starts;
            but the `"spectral"` head's gate starts open, where the official one is shut for good in half of all seeds,
            and the `"consensus"` head starts with normal values of deviation 0.02;
            `"identity"`: the `"zegclip"` head starts as a cosine classifier, from which some small models learn in
            hundreds of steps.
        prompt_templates (`list[str]`): Text templates, each with one `{}`. Their embeddings are averaged per class.
        prompt_input_ids (`dict[str, list[int]]`, *optional*):
            Token ids of the prompts of `id2label`'s names, by prompt: the classes that the model segments if it is
            given no names. Set by [`~ZegClipForSemanticSegmentation.set_class_names`].
        seen_class_names (`list[str]`, *optional*): Class names whose masks were trained on.
        vocabulary (`list[str]`, *optional*):
            Words the text tower was pretrained on where that is a closed list (the embedded default model); `None`
            for an open-vocabulary CLIP.
        focal_weight (`float`, defaults to 100.0): Weight of the focal loss.
        focal_alpha (`float`, defaults to 0.25): Weight of the pixels inside a mask, in [0, 1].
        focal_gamma (`float`, defaults to 2.0): Focusing exponent of the focal loss.
        dice_weight (`float`, defaults to 1.0): Weight of the dice loss. A term of weight 0 is not computed.
        ssim_weight (`float`, defaults to 0.0): Weight of the structural similarity loss; 1 in SPT-SEG, without dice.
        ssim_of_probabilities (`bool`, defaults to `False`):
            Whether that loss compares the masks with the logits' sigmoid; SPT-SEG compares with the logits themselves.
        cross_entropy_weight (`float`, defaults to 0.0):
            Weight of a cross-entropy over all classes, for the ablation of the losses that let classes overlap.
        semantic_loss_ignore_index (`int`, defaults to 255): Label of pixels without a class.
        ignored_pixels_as_negatives (`bool`, defaults to `True`):
            The official code counts an ignored pixel as a negative of every class; `False` leaves it out of the loss.
    """

    model_type = "zegclip"
    # What a Trainer leaves out of the predictions, which are then the logits alone.
    keys_to_ignore_at_inference = [
        *("loss_dict", "loss_counts", "image_embeds", "patch_embeds", "class_embeds", "hidden_states", "attentions"),
        *("orientations", "class_of_name"),
    ]
    sub_configs_defaults = {"clip_config": SubConfigSpec(config_class=CLIPConfig)}

    clip_config: dict | CLIPConfig | None = None
    dense_attention: Literal["plain", "maskclip", "sclip", "clearclip", "naclip"] = "plain"
    naclip_sigma: float | int = positive(default=5.0)
    similarity_scale: float | int = positive(default=40.0)
    training_free_weight: float | int = probability(default=0.0)
    decode_head_type: Literal[tuple(DECODE_HEADS)] = "zegclip"  # type: ignore[valid-type]
    descriptor: list[str] | tuple[str, ...] = ("product", "text")
    num_decoder_layers: int = at_least_1(default=3)
    decoder_attention_heads: int = at_least_1(default=8)
    decoder_ffn_dim: int = at_least_1(default=2048)
    decoder_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.1)
    decoder_window_size: int = at_least_1(default=3)
    decoder_low_frequency_heads: int = 7
    decoder_top_k: int = at_least_0(default=16)
    out_indices: list[int] | tuple[int, ...] = (7, 11)
    decode_head_init: Literal["default", "identity"] = "default"
    prompt_templates: list[str] | tuple[str, ...] = ("a photo of a {}",)
    prompt_input_ids: dict[str, list[int]] | None = None
    seen_class_names: list[str] | None = None
    vocabulary: list[str] | None = None
    focal_weight: float | int = finite_weight(default=100.0)
    focal_alpha: float | int = probability(default=0.25)
    focal_gamma: float | int = finite_weight(default=2.0)
    dice_weight: float | int = finite_weight(default=1.0)
    ssim_weight: float | int = finite_weight(default=0.0)
    ssim_of_probabilities: bool = False
    cross_entropy_weight: float | int = finite_weight(default=0.0)
    semantic_loss_ignore_index: int = 255
    ignored_pixels_as_negatives: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.clip_config is None:
            self.clip_config = CLIPConfig(vision_config={"image_size": 512, "patch_size": 16})
        self.descriptor = list(self.descriptor)
        self.prompt_templates = list(self.prompt_templates)
        self.out_indices = list(self.out_indices)
        if __name__.startswith("zegclip."):
            # Installed, the package is the code; what a shared model's folder says about its own copy is not kept.
            for name in ("auto_map", "custom_pipelines"):
                kwargs.pop(name, None)
        for name in kwargs:
            # transformers stores what it does not know; a misspelt field would silently do nothing.
            close = difflib.get_close_matches(name, [item.name for item in fields(ZegClipConfig)], n=1, cutoff=0.7)
            if close:
                raise ModelError(f"ZegClipConfig has no field {name!r}. Did you mean {close[0]!r}?")
        super().__post_init__(**kwargs)
        if getattr(self, "label2id", None) is None:
            self.label2id = {name: index for index, name in (self.id2label or {}).items()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the parent's; `given` are the names of the arguments that replace what was read."""
        loaded = super().from_dict(config_dict, **kwargs)
        labels = {"id2label", "label2id"} if "num_labels" in kwargs else set()
        (loaded[0] if isinstance(loaded, tuple) else loaded).given = {*kwargs, *labels}
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """As the parent's."""
        described = super().to_dict()
        described.pop("given", None)
        return described

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the parent's; wraps a plain CLIP's configuration, and that of an adapter alone updates its base's."""
        given = dict(kwargs)
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        adapter = StoredAdapter.find(args[0], **given) if args and not config_dict else None
        if adapter is not None and adapter.base != adapter.path:
            config_dict, kwargs = cls.get_config_dict(adapter.base, **given)
            config_dict = adapter.describe_on(config_dict)
        kind = config_dict.get("model_type")
        if kind not in (None, "clip", cls.model_type):
            place = args[0] if args else "config.json"
            raise ModelError(
                f"{place}: this is a {kind!r} model, but zegclip is built around CLIP (model_type 'clip'), such as "
                "openai/clip-vit-base-patch16."
            )
        if kind == "clip":
            vocabulary = config_dict.pop("vocabulary", None)
            config_dict = {"model_type": cls.model_type, "clip_config": config_dict, "vocabulary": vocabulary}
        return config_dict, kwargs

    @property
    def score_function(self) -> Literal["sigmoid", "softmax"]:
        """What turns logits into scores: the sigmoid of each, or the softmax over all names."""
        return DECODE_HEADS[self.decode_head_type].score_function

    @property
    def blend_weight(self) -> float:
        """`training_free_weight` of a trained head; 0 without training, as there is nothing to blend."""
        return self.training_free_weight if self.score_function == "sigmoid" else 0.0

    def class_prompts(self) -> list[str]:
        """Return the prompts of the names in `id2label`: all templates of the first name, then of the next."""
        ids = range(len(self.id2label))
        if sorted(self.id2label) != list(ids):
            raise ModelError(f"id2label must have the ids 0 to {len(ids) - 1}, not {sorted(self.id2label)}.")
        return [template.replace("{}", self.id2label[index]) for index in ids for template in self.prompt_templates]

    def describe_head(self) -> dict[str, Any]:
        """Return an adapter's part of the configuration: fields of this class but `clip_config`, and `id2label`."""
        names = [name for name in ZegClipConfig.__annotations__ if name != "clip_config"]
        return {name: getattr(self, name) for name in names} | {"id2label": self.id2label}

    def apply_head(self, described: dict[str, Any]) -> None:
        """Set what [`describe_head`] has returned, also read from JSON; fields that are left out stay as they are."""
        described = copy.deepcopy(described)
        if "id2label" in described:
            # PEFT's file has them in the order of their digits.
            pairs = sorted((int(index), name) for index, name in described["id2label"].items())
            described["id2label"] = dict(pairs)
            described["label2id"] = {name: index for index, name in described["id2label"].items()}
        for name, value in described.items():
            setattr(self, name, value)

    def validate_architecture(self) -> None:
        """Check that the fields agree with each other; `ModelError` with one sentence."""
        if not self.prompt_templates:
            raise ModelError("prompt_templates is empty: give at least one template such as 'a photo of a {}'.")
        for template in self.prompt_templates:
            if template.count("{}") != 1:
                raise ModelError(f"prompt_templates: {template!r} must contain '{{}}' exactly once.")
        weights = ("focal_weight", "dice_weight", "ssim_weight", "cross_entropy_weight")
        if not any(getattr(self, name) for name in weights):
            raise ModelError(f"{', '.join(weights[:-1])} and {weights[-1]} are all 0: give one of them a weight.")
        DECODE_HEADS[self.decode_head_type].validate(self)


__all__ = ["ZegClipConfig"]
