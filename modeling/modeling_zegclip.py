"""ZegCLIP-family models for zero-shot semantic segmentation, built around a Hugging Face CLIP."""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings, CLIPVisionModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, is_torchdynamo_exporting

from .adapters import AdapterModel
from .configuration_zegclip import ZegClipConfig
from .head_consensus import ConsensusDecodeHead
from .head_similarity import SimilarityDecodeHead
from .head_spectral import SpectralDecodeHead, SpectralMixing
from .head_zegclip import ZegClipDecodeHead
from .losses import (
    count_pixels,
    count_present_masks,
    cross_entropy_loss,
    dice_loss,
    fill_pseudo_labels,
    focal_loss,
    ssim_loss,
)

if TYPE_CHECKING:
    # In a model folder with its code, where all files lie flat, transformers copies what is named here when the model
    # is saved again. In this package the two are in `processing`, and `zegclip.sharing.publishing` copies them.
    from .image_processing_zegclip import ZegClipImageProcessor  # noqa: F401
    from .pipeline import ZeroShotImageSegmentationPipeline  # noqa: F401

DECODE_HEADS: dict[str, type[nn.Module]] = {
    "zegclip": ZegClipDecodeHead,
    "spectral": SpectralDecodeHead,
    "consensus": ConsensusDecodeHead,
    "similarity": SimilarityDecodeHead,
}


@dataclass
class ZegClipSemanticSegmenterOutput(ModelOutput):
    """
    Output of [`ZegClipForSemanticSegmentation`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Weighted sum of the loss terms, with `labels`.
        logits (`torch.Tensor` of shape `(batch, classes, height, width)`):
            Mask logits on the patch grid; their sigmoid, after upsampling, is the class score.
        loss_dict (`dict[str, torch.Tensor]`, *optional*):
            Each loss term that has a weight, weighted, with `labels`: `loss_focal`, `loss_dice`, `loss_ssim`,
            `loss_cross_entropy`.
        loss_counts (`dict[str, torch.Tensor]`, *optional*):
            What each term is divided by, where it is at least 1: masks or pixels. With them, a step of several passes
            or processes is averaged as one batch.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): Global image embedding, L2-normalised.
        patch_embeds (`torch.Tensor` of shape `(batch, height, width, dim)`): Patch embeddings, L2-normalised.
        class_embeds (`torch.Tensor` of shape `(classes, dim)`): Class embeddings, L2-normalised.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Of the vision tower, prompt tokens included.
        attentions (`tuple[torch.Tensor]`, *optional*): Of the vision tower.
        orientations (`torch.Tensor` of shape `(batch, 3)`, *optional*): As given, for post-processing.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    loss_counts: dict[str, torch.Tensor] | None = None
    image_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    class_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    orientations: torch.Tensor | None = None


class ZegClipVisionEmbeddings(CLIPVisionEmbeddings):
    """
    CLIP's embeddings, with the position table resized bilinearly as ZegCLIP does (CLIP's own way is bicubic).

    Where the active adapter says so (`double_class_embedding`), the class token's position holds the class embedding
    a second time.

    Args:
        vision_model: The tower that they belong to, whose encoder holds the adapters.
    """

    def __init__(self, vision_model: CLIPVisionModel):
        super().__init__(vision_model.config)
        self._vision_model = (vision_model,)  # in a tuple, so that it is no module of this one

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return `(1, 1 + patches, dim)` positions for a picture of `height` x `width` pixels."""
        grid = (height // self.patch_size, width // self.patch_size)
        side = self.image_size // self.patch_size
        table = self.position_embedding.weight
        if getattr(self._vision_model[0].encoder, "doubles_class_embedding", False):
            table = torch.cat([table[:1] + self.class_embedding, table[1:]])
        # A graph for all sizes has one way, which leaves the table's own size as it is.
        if not is_torchdynamo_exporting() and grid == (side, side):
            return table.unsqueeze(0)
        patches = table[1:].T.reshape(1, -1, side, side)
        patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        return torch.cat([table[:1], patches.flatten(2)[0].T]).unsqueeze(0)


class ZegClipPreTrainedModel(AdapterModel):
    """Initialisation and loading shared by the models of this family."""

    config_class = ZegClipConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
        "ZegClipVisionEmbeddings",
        "ZegClipDecoderLayer",
        "SpectralDecoderLayer",
        "SpectralMaskScores",
        "ConsensusDecodeHead",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # The loss is a mean that never depends on `num_items_in_batch`: without this line the Trainer would scale it by
    # accumulation steps and processes.
    accepts_loss_kwargs = False
    _publish: ClassVar[Callable[..., str] | None] = None
    """What `push_to_hub` calls; registration sets it, and code that came with a model has none."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For classes outside of transformers the parent skips modules without parameters of their own, and with them
        # what `_init_weights` does to a decode head as a whole. `initialization` leaves loaded tensors alone anyway.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # CLIP initialises itself; a Linear that comes here belongs to a decode head, which starts from PyTorch's own
        # values (the official head's initialiser is never called).
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)
        if isinstance(module, SpectralMixing):
            _init_gate_open(module)
            init.copy_(module.transform.weight, torch.eye(len(module.gate)))
        if isinstance(module, ZegClipDecodeHead):
            if self.config.decode_head_init == "identity":
                _init_as_cosine_classifier(module)
            else:
                _init_layers_alike(module)
        if isinstance(module, ConsensusDecodeHead):
            _init_small(module)

    def push_to_hub(self, repo_id: str, *, processor: Any = None, **kwargs: Any) -> str:
        """
        Upload the model to the Hub: weights, processor, pipeline, code and model card.

        Args:
            repo_id: `owner/name`; created if it does not exist.
            processor: By default the one beside the model's files.
            **kwargs: `whole`, `private`, `token`, `revision`, `commit_message`.

        Returns:
            The URL of the commit.

        Raises:
            ImportError: Without an installed zegclip, in a process that runs the code of a model's repository.
        """
        publish = type(self)._publish
        if publish is None:
            # Code that came with a model knows neither the card nor all of the files.
            raise ImportError("To push a model, install zegclip: the code here came with the model.")
        return publish(self, repo_id, processor=processor, **kwargs)


def _init_layers_alike(head: ZegClipDecodeHead) -> None:
    """Give every layer the values of the first: the official layers are deep copies of one."""
    if not len(head.layers):
        return
    first = dict(head.layers[0].named_parameters())
    for layer in (*head.layers[1:], head.mask_scores):
        for name, parameter in layer.named_parameters():
            init.copy_(parameter, first[name])


def _init_small(head: ConsensusDecodeHead) -> None:
    """Draw all weights from a narrow normal distribution, without biases (the usual start of transformers)."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)


def _stretch(pictures: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """
    Resize one side as `F.interpolate` does bilinearly, rounding included, with plain operators.

    Where a pixel is taken from is rounded to float32, which moves it by up to 1e-4 of a pixel on long sides. Another
    runtime's own resizing rounds otherwise, and that is enough to see in the logits.
    """
    last = pictures.shape[dim] - 1
    scale = (torch.scalar_tensor(pictures.shape[dim]) / torch.scalar_tensor(length)).to(pictures.device)
    # Product and sum are rounded once, as PyTorch's fused ones.
    middles = torch.arange(length, device=pictures.device).double() + 0.5
    places = (middles * scale.double() - 0.5).float().clamp(min=0)
    lower = places.long().clamp(max=last)
    weight = (places - lower).to(pictures)
    if dim == -2:
        weight = weight[:, None]
    upper = (lower + 1).clamp(max=last)
    return pictures.index_select(dim, lower) * (1 - weight) + pictures.index_select(dim, upper) * weight


# In standard deviations of a normal draw; with 2, none of 400 gates was shut, with 1.5, one was.
GATE_OPENING = 2.0


def _init_gate_open(mixing: SpectralMixing) -> None:
    """
    Draw the gate from a normal distribution, but on the side of what all mixed patches share at the start.

    Where chance decides that too, as in the official code, half of all gates shut out every patch: what they have in
    common (the bias of the low frequencies first of all) outweighs what they differ in. Then all logits and gradients
    are exactly zero, and no training ever leaves this state.
    """
    gate = torch.randn_like(mixing.gate)
    common = torch.zeros_like(gate)
    common[mixing.high_dim :] = F.normalize(mixing.low_proj.bias, dim=0)
    init.copy_(mixing.gate, gate + (GATE_OPENING - gate @ common) * common)


# The identity start's logit is 14 (cosine - 0.4). In the picture world's CLIP a patch and its own name have a cosine
# of about 0.7, a patch and another name one of 0.0 to 0.25.
IDENTITY_SLOPE = 14.0
IDENTITY_THRESHOLD = 0.4


def _init_as_cosine_classifier(head: ZegClipDecodeHead) -> None:
    """Let the head start as a classifier by the cosine of patch and class embedding, with residual branches closed."""
    dim = head.query_proj.out_features
    weight = torch.zeros_like(head.query_proj.weight)
    text = head.descriptor.index("text")
    weight[:, text * dim : (text + 1) * dim] = torch.eye(dim)
    init.copy_(head.query_proj.weight, weight)
    init.zeros_(head.query_proj.bias)
    for layer in head.layers:
        for branch in (layer.out_proj, layer.fc2):
            init.zeros_(branch.weight)
            init.zeros_(branch.bias)
    scores = head.mask_scores
    unit = scores.num_heads / scores.scaling  # product of query and key that makes a logit of 1
    # The layers' norms bring queries to length sqrt(dim) and mean 0. So the constant direction is free to carry the
    # threshold: both biases point along it, and both weights leave it out.
    constant = torch.full((dim,), dim**-0.5)
    query_norm = math.sqrt(dim) if len(head.layers) else 1.0
    projection = torch.eye(dim) - torch.outer(constant, constant)
    gain = math.sqrt(IDENTITY_SLOPE * unit / query_norm)
    offset = math.sqrt(IDENTITY_SLOPE * IDENTITY_THRESHOLD * unit)
    for linear, sign in ((scores.q_proj, 1.0), (scores.k_proj, -1.0)):
        init.copy_(linear.weight, gain * projection)
        init.copy_(linear.bias, sign * offset * constant)


class ZegClipForSemanticSegmentation(ZegClipPreTrainedModel):
    """
    A CLIP whose patches are matched against class names by a decode head.

    picture -> vision tower -> global and patch embeddings -> decode head -> mask logits; names -> text tower -> class
    embeddings -> decode head. Prompts come from an adapter, see [`DeepPromptConfig`].
    """

    def __init__(self, config: ZegClipConfig):
        super().__init__(config)
        self.clip = CLIPModel._from_config(config.clip_config)
        self.clip.vision_model.embeddings = ZegClipVisionEmbeddings(self.clip.vision_model)
        self.decode_head = DECODE_HEADS[config.decode_head_type](config)
        self.post_init()

    def get_class_embeds(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_templates: int | None = None,
    ) -> torch.Tensor:
        """
        Encode class names once, for any number of pictures.

        An adapter with text prompts puts them in the place of the template that it was made for.

        Args:
            input_ids: `(names * templates, length)` token ids, all templates of the first name first.
            attention_mask: Same shape, 1 for tokens and 0 for padding. With it, names are encoded at their end token
                whatever `eos_token_id` the configuration gives; without it, as the CLIP's text tower does.
            num_templates: Rows per name; defaults to the number of templates in the configuration.

        Returns:
            `(names, dim)`: the L2-normalised mean of each name's L2-normalised template embeddings.
        """
        num_templates = num_templates or len(self.config.prompt_templates)
        num_rows = input_ids.shape[0]  # `len` would fix it where a graph is exported
        if num_rows % num_templates:
            raise ValueError(
                f"input_ids has {num_rows} rows, not a multiple of the {num_templates} prompt templates: pass "
                "num_templates if the processor uses other templates than the model's configuration."
            )
        kwargs = {}
        make_room = getattr(self.clip.text_model.encoder, "make_room", None)
        if make_room is not None:  # an adapter's text prompts
            input_ids, attention_mask = make_room(input_ids, attention_mask)
            kwargs["room_made"] = True
        outputs = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states = outputs.pooler_output
        if attention_mask is not None:
            # Where the configuration does not give the end token, it is the last that is no padding. OpenAI's say 2,
            # for which the text tower takes the largest id, such as that of a word added to the tokenizer.
            end = (attention_mask * torch.arange(attention_mask.shape[1], device=attention_mask.device)).argmax(dim=-1)
            if self.clip.text_model.eos_token_id != 2:
                is_end = input_ids == self.clip.text_model.eos_token_id
                end = torch.where(is_end.any(dim=-1), is_end.int().argmax(dim=-1), end)
            states = outputs.last_hidden_state[torch.arange(num_rows, device=end.device), end]
        embeds = F.normalize(self.clip.text_projection(states), dim=-1)
        return F.normalize(embeds.unflatten(0, (-1, num_templates)).mean(dim=1), dim=-1)

    def get_image_embeds(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor, ModelOutput]:
        """
        Encode pictures, with the final norm and projection on every token (not on the class token alone).

        Args:
            pixel_values: `(batch, 3, height, width)`. Sides that the patch size does not divide are stretched to the
                next multiple, so that the patch grid always covers the whole picture.

        Returns:
            Global embeddings `(batch, dim)` and patch embeddings `(batch, height, width, dim)`, both L2-normalised,
            and the vision tower's own output.
        """
        image_embeds, patch_embeds, outputs = self._project_image(pixel_values, **kwargs)
        return F.normalize(image_embeds, dim=-1), F.normalize(patch_embeds, dim=-1), outputs

    def _project_image(
        self, pixel_values: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, ModelOutput]:
        """As [`get_image_embeds`], before normalisation."""
        patch = self.config.clip_config.vision_config.patch_size
        grid = tuple((side + patch - 1) // patch for side in pixel_values.shape[-2:])
        size = (grid[0] * patch, grid[1] * patch)
        if is_torchdynamo_exporting():
            pixel_values = _stretch(_stretch(pixel_values, -2, size[0]), -1, size[1])
        elif tuple(pixel_values.shape[-2:]) != size:
            pixel_values = F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        vision = self.clip.vision_model
        if not isinstance(vision.encoder, CLIPEncoder):  # but an adapter's layer, whatever may wrap it
            kwargs["patch_grid"] = grid
        outputs = vision(pixel_values, interpolate_pos_encoding=True, **kwargs)
        embeds = self.clip.visual_projection(vision.post_layernorm(outputs.last_hidden_state))
        return embeds[:, 0], embeds[:, 1:].unflatten(1, grid), outputs

    def compute_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, pseudo_label_ids: Sequence[int] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        Compute the weighted loss terms at the labels' resolution, at least in float32 (paper section 3.5).

        Args:
            logits: `(batch, classes, height, width)` mask logits on the patch grid.
            labels: `(batch, height, width)` ids into the classes, the ignore index or, with `pseudo_label_ids`, -1 for
                pixels to fill.
            pseudo_label_ids: Ids of the classes from which pixels labelled -1 get the best, by these very logits
                (transductive self-training).

        Returns:
            The terms, and what each of them is divided by, see [`count_labels`].

        Raises:
            ValueError: If the labels are of another shape, or hold an id without a class; one sentence.
        """
        config = self.config
        num_classes = logits.shape[1]
        if labels.is_floating_point():
            raise ValueError(f"labels are class ids, whole numbers, but they are {labels.dtype}.")
        if labels.ndim != 3 or len(labels) != len(logits):
            raise ValueError(f"labels must be ({len(logits)}, height, width), not {tuple(labels.shape)}.")
        labels = labels.to(logits.device).long()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        if pseudo_label_ids is not None:
            labels = fill_pseudo_labels(logits, labels, pseudo_label_ids)
        counts = self.count_labels(labels, num_classes)
        present, num_masks = count_present_masks(labels, num_classes, config.semantic_loss_ignore_index)
        rule = {
            "ignore_index": config.semantic_loss_ignore_index,
            "ignored_as_negatives": config.ignored_pixels_as_negatives,
        }
        terms = {}
        if config.focal_weight:
            focal = focal_loss(logits, labels, num_masks, alpha=config.focal_alpha, gamma=config.focal_gamma, **rule)
            terms["loss_focal"] = config.focal_weight * focal
        if config.dice_weight:
            terms["loss_dice"] = config.dice_weight * dice_loss(logits, labels, present, num_masks, **rule)
        if config.ssim_weight:
            ssim = ssim_loss(logits, labels, of_probabilities=config.ssim_of_probabilities, **rule)
            terms["loss_ssim"] = config.ssim_weight * ssim
        if config.cross_entropy_weight:
            entropy = cross_entropy_loss(logits, labels, ignore_index=config.semantic_loss_ignore_index)
            terms["loss_cross_entropy"] = config.cross_entropy_weight * entropy
        return terms, {name: counts[name] for name in terms}

    def count_labels(self, labels: torch.Tensor, num_classes: int) -> dict[str, torch.Tensor]:
        """
        Count what each loss term is divided by.

        Args:
            labels: `(batch, height, width)` int64 ids into the classes, or the ignore index.
            num_classes: How many there are.

        Returns:
            Scalars, int64: present masks for `loss_focal` and `loss_dice`, pixels for `loss_ssim` and
            `loss_cross_entropy`.

        Raises:
            ValueError: If a label is neither an id nor the ignore index, or that is an id; one sentence.
        """
        ignore_index = self.config.semantic_loss_ignore_index
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"semantic_loss_ignore_index={ignore_index} is the id of one of the {num_classes} class names, whose "
                "pixels would be ignored: give the configuration a larger one, such as 65535, and use it in labels."
            )
        if not torch.compiler.is_compiling():
            unknown = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
            if unknown.any():
                raise ValueError(
                    f"labels contain the id {labels[unknown][0].item()}, outside of the {num_classes} class names "
                    f"(0 to {num_classes - 1}, or {ignore_index} to ignore)."
                )
        present, _ = count_present_masks(labels, num_classes, ignore_index)
        return {
            "loss_focal": present.sum(),
            "loss_dice": present.sum(),
            "loss_ssim": count_pixels(labels, ignore_index, ignored_too=self.config.ignored_pixels_as_negatives),
            "loss_cross_entropy": count_pixels(labels, ignore_index, ignored_too=False),
        }

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_templates: int | None = None,
        pseudo_label_ids: Sequence[int] | None = None,
        orientations: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ZegClipSemanticSegmenterOutput:
        r"""
        Segment pictures into the named classes.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised pictures of any size.
            input_ids (`torch.Tensor` of shape `(names * templates, length)`, *optional*): Token ids of the names.
            attention_mask (`torch.Tensor`, *optional*): For `input_ids`.
            class_embeds (`torch.Tensor` of shape `(names, dim)`, *optional*):
                From [`~ZegClipForSemanticSegmentation.get_class_embeds`], instead of `input_ids`.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Ids into the names.
            num_templates (`int`, *optional*): Rows of `input_ids` per name; defaults to the configuration's.
            pseudo_label_ids (`Sequence[int]`, *optional*):
                For transductive training: pixels labelled -1 get the best of these classes.
            orientations (`torch.Tensor` of shape `(batch, 3)`, *optional*):
                What the processor says of pictures that it turned upright; handed on to post-processing.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # PEFT names what it leaves out
        for name in kwargs.keys() - TransformersKwargs.__annotations__.keys():
            close = difflib.get_close_matches(name, inspect.signature(self.forward).parameters, n=1)
            hint = f": did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}{hint}")
        if input_ids is not None and class_embeds is None:
            class_embeds = self.get_class_embeds(input_ids, attention_mask, num_templates)
        elif input_ids is not None or class_embeds is None:
            raise ValueError("Give the class names either as input_ids or as class_embeds.")
        asked_for_states = bool(kwargs.get("output_hidden_states"))
        out_indices = self.config.out_indices if self.config.decode_head_type == "consensus" else []
        if out_indices:
            # All, if some are asked for; the first are the embeddings.
            kwargs["output_hidden_states"] = asked_for_states or [index + 1 for index in out_indices]
        image_embeds, patch_embeds, vision_outputs = self._project_image(pixel_values, **kwargs)
        grid = patch_embeds.shape[1:3]
        hidden_states = [
            vision_outputs.hidden_states[index + 1][:, -grid[0] * grid[1] :].unflatten(1, grid)
            for index in out_indices
        ]
        image_embeds = F.normalize(image_embeds, dim=-1)
        class_embeds = class_embeds.to(device=patch_embeds.device, dtype=patch_embeds.dtype)
        # An adapter's decode head is in float32, also on a CLIP in half precision.
        dtype = getattr(self.decode_head, "dtype", patch_embeds.dtype)
        logits = self.decode_head(
            image_embeds.to(dtype),
            patch_embeds.to(dtype),
            class_embeds.to(dtype),
            [states.to(dtype) for states in hidden_states],
        )

        loss_dict, loss_counts = None, None
        if labels is not None:
            loss_dict, loss_counts = self.compute_loss(logits, labels, pseudo_label_ids)
        return ZegClipSemanticSegmenterOutput(
            loss=torch.stack(list(loss_dict.values())).sum() if loss_dict else None,
            logits=logits.to(patch_embeds.dtype),
            loss_dict=loss_dict,
            loss_counts=loss_counts,
            image_embeds=image_embeds,
            patch_embeds=F.normalize(patch_embeds, dim=-1),
            class_embeds=class_embeds,
            hidden_states=vision_outputs.hidden_states if asked_for_states or not out_indices else None,
            attentions=vision_outputs.attentions,
            orientations=orientations,
        )


__all__ = ["ZegClipForSemanticSegmentation", "ZegClipPreTrainedModel", "ZegClipSemanticSegmenterOutput"]
