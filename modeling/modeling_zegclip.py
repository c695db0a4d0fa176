"""ZegCLIP-family models for zero-shot semantic segmentation, built around a Hugging Face CLIP."""

import difflib
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .adapters import AdapterModel
from .clip_vision import ZegClipVisionEmbeddings
from .configuration_zegclip import ZegClipConfig
from .dense_attention import DenseEncoder
from .head_base import DecodeHead
from .head_similarity import SimilarityDecodeHead
from .heads import DECODE_HEADS
from .losses import compute_loss, count_labels
from .model_error import ModelError
from .outputs import OUTPUTS, TrainingFreeSegmenterOutput, ZegClipSemanticSegmenterOutput

if TYPE_CHECKING:
    # In a model folder with its code, where all files lie flat, transformers copies what is named here when the model
    # is saved again. In this package the two are in `processing`, and `zegclip.sharing.publishing` copies them.
    from .image_processing_zegclip import ZegClipImageProcessor  # noqa: F401
    from .pipeline import ZeroShotImageSegmentationPipeline  # noqa: F401


_TOKENS_OF_A_PASS = 32
"""Padded tokens that take a CPU as long as another pass of the text tower, whose weights must be read again."""


_FEWEST_ROWS = 16
"""Rows of text that are encoded together: with few, products take other kernels, whose last bits differ."""


class ZegClipPreTrainedModel(AdapterModel):
    """Initialisation and loading shared by the models of this family."""

    config_class = ZegClipConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "DenseEncoderLayer", "ZegClipVisionEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
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
        # CLIP initialises itself; what comes here belongs to a decode head. A Linear starts from PyTorch's own values
        # (the official head's initialiser is never called), then heads and their parts set what differs.
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif module is self:
            # CLIP leaves it out: missing in a file, it would be whatever is in memory.
            init.constant_(self.clip.logit_scale, self.config.clip_config.logit_scale_init_value)
        elif (init_weights := getattr(module, "init_weights", None)) is not None:
            init_weights()
        else:
            super()._init_weights(module)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: Sequence[str] | str | None = None,
        processor: Any = None,
        whole: bool | None = None,
    ) -> str:
        """
        Upload the model to the Hub: weights, processor, pipeline, code and model card.

        As `PreTrainedModel.push_to_hub`, with two more arguments.

        Args:
            repo_id: `owner/name`; created if it does not exist.
            commit_message: As the parent's.
            commit_description: As the parent's.
            private: As the parent's.
            token: As the parent's.
            revision: As the parent's.
            create_pr: As the parent's.
            max_shard_size: As the parent's.
            tags: As the parent's.
            processor: By default the one beside the model's files.
            whole: With an adapter, whether its base goes with it; by default if the base is not on the Hub.

        Returns:
            The URL of the commit, or of the pull request.

        Raises:
            ImportError: Without an installed zegclip, in a process that runs the code of a model's repository.
        """
        publish = type(self)._publish
        if publish is None:
            # Code that came with a model knows neither the card nor all of the files.
            raise ImportError("To push a model, install zegclip: the code here came with the model.")
        return publish(
            self,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            max_shard_size=max_shard_size,
            tags=tags,
            processor=processor,
            whole=whole,
        )


class ZegClipForSemanticSegmentation(ZegClipPreTrainedModel):
    """
    A CLIP whose patches are matched against class names by a decode head.

    picture -> vision tower -> global and patch embeddings -> decode head -> mask logits; names -> text tower -> class
    embeddings -> decode head. Prompts come from an adapter, see [`DeepPromptConfig`].
    """

    def __init__(self, config: ZegClipConfig):
        super().__init__(config)
        self.clip = CLIPModel._from_config(config.clip_config)
        vision = self.clip.vision_model
        vision.embeddings = ZegClipVisionEmbeddings(vision)
        vision.encoder = DenseEncoder(vision.encoder, config)
        self.decode_head: DecodeHead = DECODE_HEADS[config.decode_head_type](config)
        self.post_init()

    def set_class_names(self, names: Sequence[str] | str, processor: Any) -> None:
        """
        Set the classes that the model segments if it is given no names, as other models for segmentation do.

        They become `id2label`; `save_pretrained` saves them with their token ids in the configuration's templates, as
        a part of the active adapter if there is one.

        Args:
            names: Class names in the order of their ids, as the processor takes them.
            processor: A [`ZegClipProcessor`].

        Raises:
            InputError: If a name is not valid, or the tokenizer does not match the model.
        """
        rows_of_name = processor.tokenize_names(names, self.config.prompt_templates, self.config)
        self.config.id2label = dict(enumerate(rows_of_name))
        self.config.label2id = {name: index for index, name in enumerate(rows_of_name)}
        rows = itertools.chain(*rows_of_name.values())
        self.config.prompt_input_ids = dict(zip(self.config.class_prompts(), rows, strict=True))

    @torch.compiler.assume_constant_result
    def _install_capturing_hooks(self) -> None:
        # Transformers does it under a lock, which cannot be traced into a graph: so it is called while one is traced.
        maybe_install_capturing_hooks(self.clip.vision_model)

    def _class_inputs(self, device: torch.device) -> dict[str, Any]:
        """Return the configuration's class names as inputs of [`get_class_embeds`]; `ModelError` if it has none."""
        known, prompts = self.config.prompt_input_ids or {}, self.config.class_prompts()
        if not prompts or not known.keys() >= set(prompts):  # also where `id2label` or the templates are others now
            raise ModelError(
                "Give class names as input_ids or class_embeds; for those of the configuration (id2label) to be used, "
                "call model.set_class_names(names, processor) once."
            )
        rows = [torch.tensor(known[prompt]) for prompt in prompts]
        input_ids = pad_sequence(rows, batch_first=True)
        attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {
            "input_ids": input_ids.to(device),
            "attention_mask": attention_mask.to(device),
            "num_templates": len(self.config.prompt_templates),
        }

    def get_input_embeddings(self) -> nn.Module:
        """Return the text tower's token embeddings."""
        return self.clip.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the text tower's token embeddings."""
        self.clip.text_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """
        As the parent's, of the text tower.

        The base is then stored nowhere: an adapter that is saved afterwards is saved with it.
        """
        rows = self.get_input_embeddings().num_embeddings
        embeddings = self.clip.text_model.resize_token_embeddings(*args, **kwargs)
        if embeddings.num_embeddings != rows:
            self._forget_base()
        return embeddings

    def get_class_embeds(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_templates: int | torch.Tensor | None = None,
        class_of_name: torch.Tensor | None = None,
        with_prompts: bool = True,
    ) -> torch.Tensor:
        """
        Encode class names once, for any number of pictures.

        An adapter with text prompts puts them in the place of the template that it was made for.

        Args:
            input_ids: `(names * templates, length)` token ids, all templates of the first name first.
            attention_mask: Same shape, 1 for tokens and 0 for padding on the right. With it, names are encoded at
                their end token whatever `eos_token_id` the configuration gives; without it, as the text tower does.
            num_templates: Rows per name, which the processor returns; defaults to the configuration's templates.
            class_of_name: Not used, as the embeddings are those of names; the processor returns it with the others.
            with_prompts: Whether the active adapter's text prompts are used.

        Returns:
            `(names, dim)`: the L2-normalised mean of each name's L2-normalised template embeddings.
        """
        if num_templates is None:
            num_templates = len(self.config.prompt_templates)
        elif isinstance(num_templates, torch.Tensor):  # `int` would also fix it where a graph is exported
            num_templates = int(num_templates)
        if input_ids.ndim != 2:  # (pictures, names, length) would be read as more names
            raise ModelError(f"input_ids must be (names * templates, length), not {tuple(input_ids.shape)}.")
        num_rows = input_ids.shape[0]  # `len` would fix it where a graph is exported
        if num_rows % num_templates:
            raise ModelError(
                f"input_ids has {num_rows} rows, not a multiple of the {num_templates} prompt templates: pass "
                "num_templates if the processor uses other templates than the model's configuration."
            )
        kwargs = {}
        make_room = getattr(self.clip.text_model.encoder, "make_room", None)
        if make_room is not None:  # an adapter's text prompts
            if with_prompts:
                input_ids, attention_mask = make_room(input_ids, attention_mask)
            kwargs = {"room_made": True, "with_prompts": with_prompts}
        if attention_mask is None:
            states = self.clip.text_model(input_ids=input_ids, **kwargs).pooler_output
        else:
            # The last token that is not padding, unless the configuration gives the end token. OpenAI's configurations
            # give 2, for which the text tower takes the largest id, such as that of a word added to the tokenizer.
            end = (attention_mask * torch.arange(attention_mask.shape[1], device=attention_mask.device)).argmax(dim=-1)
            if self.clip.text_model.eos_token_id != 2:
                is_end = input_ids == self.clip.text_model.eos_token_id
                end = torch.where(is_end.any(dim=-1), is_end.int().argmax(dim=-1), end)
            states = self._encode_text(input_ids, end, **kwargs)
        embeds = F.normalize(self.clip.text_projection(states), dim=-1)
        return F.normalize(embeds.unflatten(0, (-1, num_templates)).mean(dim=1), dim=-1)

    def _encode_text(self, input_ids: torch.Tensor, end: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the text tower's states `(rows, width)` at each row's token `end` `(rows,)`."""
        # Causal attention: what is behind the end token changes nothing before it, and no mask is needed to hide it.
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling():
            states = self.clip.text_model(input_ids=input_ids, **kwargs).last_hidden_state
            return states[torch.arange(len(end), device=end.device), end]
        # On a CPU, padding costs as much as names: rows of other lengths are encoded apart, unless that costs more.
        ends = end.tolist()
        groups: list[list[int]] = []
        for row in sorted(range(len(ends)), key=ends.__getitem__):
            longer = len(groups[-1]) * (ends[row] - ends[groups[-1][-1]]) if groups else 0
            if not groups or (len(groups[-1]) >= _FEWEST_ROWS and longer > _TOKENS_OF_A_PASS):
                groups.append([])
            groups[-1].append(row)
        if len(groups) > 1 and len(groups[-1]) < _FEWEST_ROWS:
            last = groups.pop()
            groups[-1] += last
        parts = []
        for rows in groups:
            states = self.clip.text_model(input_ids=input_ids[rows, : ends[rows[-1]] + 1], **kwargs).last_hidden_state
            parts.append(states[torch.arange(len(rows)), end[rows]])
        return torch.cat(parts)[torch.tensor(list(itertools.chain(*groups))).argsort()]

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
        vision = self.clip.vision_model
        grid = vision.embeddings.patch_grid(pixel_values)
        outputs = vision(pixel_values, interpolate_pos_encoding=True, patch_grid=grid, **kwargs)
        embeds = self.clip.visual_projection(vision.post_layernorm(outputs.last_hidden_state))
        return embeds[:, 0], embeds[:, 1:].unflatten(1, grid), outputs

    def get_training_free_logits(
        self, pixel_values: torch.Tensor, class_embeds: torch.Tensor
    ) -> TrainingFreeSegmenterOutput:
        """
        Compute what the CLIP alone answers by NACLIP's method: without prompts and without the decode head.

        Args:
            pixel_values: `(batch, 3, height, width)`.
            class_embeds: `(names, dim)`, from [`get_class_embeds`] with `with_prompts=False`.

        Returns:
            Output with `logits` `(batch, names, height, width)`, whose softmax over the names is the score.
        """
        vision = self.clip.vision_model
        encoder = getattr(vision.encoder, "base_layer", vision.encoder)
        grid = vision.embeddings.patch_grid(pixel_values)
        states = vision.embeddings(pixel_values, interpolate_pos_encoding=True, with_adapter=False)
        states = vision.pre_layrnorm(states)
        states = encoder(states, patch_grid=grid, dense_attention="naclip").last_hidden_state
        embeds = self.clip.visual_projection(vision.post_layernorm(states))[:, 1:].unflatten(1, grid)
        return TrainingFreeSegmenterOutput(
            logits=SimilarityDecodeHead(self.config)(embeds, embeds, class_embeds.to(embeds))
        )

    def compute_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, pseudo_class_ids: Sequence[int] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Compute the weighted loss terms and what each of them is divided by, see `losses.compute_loss`."""
        return compute_loss(self.config, logits, labels, pseudo_class_ids)

    def count_labels(self, labels: torch.Tensor, num_classes: int) -> dict[str, torch.Tensor]:
        """Count what each loss term is divided by, see `losses.count_labels`."""
        return count_labels(self.config, labels, num_classes)

    def _check_arguments(self, kwargs: dict[str, Any]) -> None:
        """Raise `TypeError` for what `forward` does not know: a misspelt argument would silently do nothing."""
        for name in kwargs.keys() - TransformersKwargs.__annotations__.keys():
            close = difflib.get_close_matches(name, inspect.signature(self.forward).parameters, n=1)
            hint = f": did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}{hint}")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_templates: int | torch.Tensor | None = None,
        pseudo_class_ids: Sequence[int] | None = None,
        orientations: torch.Tensor | None = None,
        class_of_name: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ZegClipSemanticSegmenterOutput:
        r"""
        Segment pictures into the named classes; without names, into those of the configuration's `id2label`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised pictures of any size.
            input_ids (`torch.Tensor` of shape `(names * templates, length)`, *optional*): Token ids of the names.
            attention_mask (`torch.Tensor`, *optional*): For `input_ids`.
            class_embeds (`torch.Tensor` of shape `(names, dim)`, *optional*):
                From [`~ZegClipForSemanticSegmentation.get_class_embeds`], instead of `input_ids`.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Ids into the names.
            num_templates (`int` or `torch.Tensor`, *optional*): Rows of `input_ids` per name, from the processor.
            pseudo_class_ids (`Sequence[int]`, *optional*):
                For transductive training: pixels labelled -1 get the best of these classes.
            orientations (`torch.Tensor` of shape `(batch, 3)`, *optional*):
                How the processor turned pictures upright; passed on to post-processing.
            class_of_name (`torch.Tensor` of shape `(names,)`, *optional*):
                The class of each name, from the processor, where classes have several. Logits are those of names;
                `labels` are ids of classes, and the loss is that of each class's best name.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # PEFT passes None for the rest
        self._check_arguments(kwargs)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
            raise ModelError(
                "pixel_values are pictures from the processor, (batch, 3, height, width) and normalised, not "
                f"{tuple(pixel_values.shape)} {pixel_values.dtype}."
            )
        if self.decode_head.score_function != self.config.score_function:
            raise ModelError(
                "decode_head_type was changed after the model was built: give it to from_pretrained instead."
            )
        if input_ids is None and not (attention_mask is None and num_templates is None):
            raise ModelError("attention_mask and num_templates are of input_ids, which are missing.")
        if class_embeds is None:
            names = {"input_ids": input_ids, "attention_mask": attention_mask, "num_templates": num_templates}
            class_embeds = self.get_class_embeds(
                **(self._class_inputs(pixel_values.device) if input_ids is None else names)
            )
            if self.config.blend_weight and not self.training and not torch.compiler.is_compiling():
                warnings.warn(
                    "This model has a training_free_weight: zero-shot-image-segmentation adds what the CLIP says "
                    "without training to its scores. What forward returns, also in image-segmentation, is without it.",
                    stacklevel=5,  # the call of the model
                )
        elif input_ids is not None:
            raise ModelError("Give the class names either as input_ids or as class_embeds.")
        for name in ("output_hidden_states", "output_attentions"):
            asked = any(getattr(config, name) for config in (self.config, self.clip.vision_model.config))
            kwargs.setdefault(name, asked)
        asked_for_states = bool(kwargs["output_hidden_states"])
        out_indices = self.decode_head.out_indices
        if out_indices:
            # All, if some are asked for; the first are the embeddings.
            kwargs["output_hidden_states"] = asked_for_states or [index + 1 for index in out_indices]
        if kwargs["output_hidden_states"] or kwargs["output_attentions"]:
            self._install_capturing_hooks()
        image_embeds, patch_embeds, vision_outputs = self._project_image(pixel_values, **kwargs)
        grid = patch_embeds.shape[1:3]
        hidden_states = [
            vision_outputs.hidden_states[index + 1][:, -grid[0] * grid[1] :].unflatten(1, grid)
            for index in out_indices
        ]
        image_embeds = F.normalize(image_embeds, dim=-1)
        class_embeds = class_embeds.to(device=patch_embeds.device, dtype=patch_embeds.dtype)
        # An adapter's decode head is in float32, also on a CLIP in half precision.
        dtype = self.decode_head.dtype or patch_embeds.dtype
        logits = self.decode_head(
            image_embeds.to(dtype),
            patch_embeds.to(dtype),
            class_embeds.to(dtype),
            [states.to(dtype) for states in hidden_states],
        )

        loss_dict, loss_counts = None, None
        if labels is not None:
            of_classes = logits
            if class_of_name is not None:
                names_of_class = [class_of_name == index for index in range(int(class_of_name.max()) + 1)]
                of_classes = torch.stack([logits[:, names].amax(dim=1) for names in names_of_class], dim=1)
            loss_dict, loss_counts = self.compute_loss(of_classes, labels, pseudo_class_ids)
        return OUTPUTS[self.config.score_function](
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
            class_of_name=class_of_name,
        )


__all__ = ["ZegClipForSemanticSegmentation", "ZegClipPreTrainedModel", "ZegClipSemanticSegmenterOutput"]
