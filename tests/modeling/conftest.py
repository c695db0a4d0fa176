"""What the parity tests of all methods share: a model converted from official weights, trained for one step."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zegclip import ZegClipImageProcessorPil
from zegclip.modeling.convert_official_checkpoint import DECODER_NAMES, TRANSPOSED, convert
from zegclip.modeling.loss_zegclip import fill_pseudo_labels
from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.trainer import ZegClipTrainer, ZegClipTrainingArguments


class Golden:
    """The official tensors of one file, and our model converted from its state dict."""

    def __init__(self, tensors, state_dict_prefix, method, config, *, text, seen, unseen, self_training):
        self.tensors = tensors
        self.method = method
        state_dict = {
            name.removeprefix(state_dict_prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(state_dict_prefix)
        }
        self.model = convert(state_dict, method=method, config=config)
        self.head = self.model.decode_head.modules_to_save["default"]
        self.encoder = self.model.clip.vision_model.encoder
        self.encoder.prompt_configs["default"].dropout = 0.0
        for module in self.model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        self.text = text
        self.seen, self.unseen = seen, unseen
        names = tuple(f"class {i}" for i in range(len(seen) + len(unseen)))
        self.split = ClassSplit(names, tuple(seen), tuple(unseen))
        self.self_training = self_training
        self.setting = "transductive" if self_training else "inductive" if unseen else "fully_supervised"

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def train_class_embeds(self) -> torch.Tensor:
        return self.text[list(self.split.training_ids(self.setting))]

    def train_step(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """
        Return upsampled logits, targets and loss terms in train mode (dropout is zero).

        Through the very code that a training runs: the split's labels, the Trainer's loss.
        """
        arguments = ZegClipTrainingArguments(output_dir="unused", use_cpu=True, report_to="none", save_strategy="no")
        trainer = ZegClipTrainer(
            model=self.model,
            args=arguments,
            processing_class=SimpleNamespace(image_processor=ZegClipImageProcessorPil()),
            names={"class_embeds": self.text},
            split=self.split,
            setting=self.setting,
        )
        self.model.train()
        targets = torch.from_numpy(self.split.training_labels(labels[:, 0].numpy().astype(np.int64), self.setting))
        inputs = {"pixel_values": self["input.image"], "labels": targets}
        _, output = trainer.compute_loss(self.model, inputs, return_outputs=True)
        upsampled = F.interpolate(output.logits, size=targets.shape[-2:], mode="bilinear", align_corners=False)
        if self.self_training:
            targets = fill_pseudo_labels(upsampled, targets, self.unseen)
        return upsampled, targets, output.loss_dict

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients of the total loss for the file's labels, under the official names."""
        model = self.model
        model.peft_config["default"].inference_mode = False  # a converted adapter is frozen
        model.set_adapter("default")
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in trainable.values():
            parameter.grad = None
        _, _, losses = self.train_step(self["input.label"])
        sum(losses.values()).backward()
        result: dict[str, torch.Tensor] = {}
        last = model.config.num_decoder_layers - 1
        official_names = {ours: theirs for theirs, ours in DECODER_NAMES[self.method].items()}
        for name, parameter in trainable.items():
            name = name.replace(".default", "").split("modules_to_save.")[-1]
            if "deep_prompt_tokens" in name:
                first = int(self.encoder.prompt_configs["default"].num_deep_layers >= 0)
                if first:
                    result["backbone.prompt_embeddings"] = parameter.grad[:1]
                if len(parameter) > first:
                    result["backbone.deep_prompt_embeddings"] = parameter.grad[first:]
            elif "deep_prompt_filter" in name:
                result["backbone.complex_weight"] = parameter.grad
            elif match := re.search(r"deep_prompt_(proj|norm)\.(.*)", name):
                result[f"backbone.prompt_{match[1]}.{match[2]}"] = parameter.grad
            elif match := re.search(r"query_proj\.(.*)", name):
                result[f"decode_head.q_proj.{match[1]}"] = parameter.grad
            else:
                match = re.search(r"(?:layers\.(\d+)|mask_scores)\.(.*)", name)
                layer = last if match[1] is None else match[1]
                theirs = official_names[match[2]]
                gradient = parameter.grad.T if theirs in TRANSPOSED else parameter.grad
                result[f"decode_head.decoder_1.layers.{layer}.{theirs}"] = gradient
        return result


@pytest.fixture(scope="session")
def make_golden():
    return Golden
