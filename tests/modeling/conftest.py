"""What the parity tests of all methods share: a model converted from official weights, trained for one step."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.utils.data import Dataset

from zegclip import ZegClipImageProcessorPil
from zegclip.modeling.convert_official_checkpoint import TRANSPOSED, convert, name_table
from zegclip.modeling.losses import fill_pseudo_labels
from zegclip.processing.class_split import ClassSplit
from zegclip.training.trainer import ZegClipTrainer
from zegclip.training.training_arguments import ZegClipTrainingArguments

FORWARD_TOLERANCE = 1e-5


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
        self.model.config.decoder_dropout = 0.0
        self.text = text
        self.seen, self.unseen = seen, unseen
        names = tuple(f"class {i}" for i in range(len(text)))
        self.split = ClassSplit(names, tuple(seen), tuple(unseen))
        self.self_training = self_training
        self.setting = "transductive" if self_training else "inductive" if unseen else "fully_supervised"

    @staticmethod
    def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        """Return a file's metadata and tensors."""
        with safe_open(path, "pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def record(
        self, class_embeds: torch.Tensor, inputs: dict[str, torch.nn.Module], outputs: dict[str, torch.nn.Module]
    ) -> tuple[dict[str, Any], Any]:
        """Run the model on the file's pictures; return what modules are given and return, and the model's output."""
        seen: dict[str, Any] = {}

        def keep(name: str, tensor: Any) -> None:
            seen[name] = tensor

        handles = [
            module.register_forward_hook(lambda _module, args, _output, name=name: keep(name, args[0]))
            for name, module in inputs.items()
        ]
        handles += [
            module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
            for name, module in outputs.items()
        ]
        output = self.model(pixel_values=self["input.image"], class_embeds=class_embeds)
        for handle in handles:
            handle.remove()
        return seen, output

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
        trainer = self.trainer()
        self.model.train()
        targets = self.labels(labels[:, 0])
        inputs = {"pixel_values": self["input.image"], "labels": targets}
        _, output = trainer.compute_loss(self.model, inputs, return_outputs=True)
        upsampled = F.interpolate(output.logits, size=targets.shape[-2:], mode="bilinear", align_corners=False)
        if self.self_training:
            targets = fill_pseudo_labels(upsampled, targets, self.unseen)
        return upsampled, targets, output.loss_dict

    def trainer(self, train_dataset: Dataset | None = None, **arguments: Any) -> ZegClipTrainer:
        """Return the project's Trainer for the file's setting, on a CPU, without files and reports."""
        args = ZegClipTrainingArguments(
            output_dir="unused", use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **arguments
        )
        return ZegClipTrainer(
            model=self.model,
            args=args,
            train_dataset=train_dataset,
            processing_class=SimpleNamespace(image_processor=ZegClipImageProcessorPil()),
            names={"class_embeds": self.text},
            split=self.split,
            setting=self.setting,
        )

    def unfreeze(self) -> dict[str, torch.nn.Parameter]:
        """Make trainable what training trains, as a converted adapter is frozen, and return it."""
        self.model.peft_config["default"].inference_mode = False
        self.model.set_adapter("default")
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return what the setting sees of raw labels, int64."""
        return torch.from_numpy(self.split.training_labels(labels.numpy().astype(np.int64), self.setting))

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients of the total loss for the file's labels, under the official names."""
        trainable = self.unfreeze()
        for parameter in trainable.values():
            parameter.grad = None
        _, _, losses = self.train_step(self["input.label"])
        sum(losses.values()).backward()
        return self.official({name: parameter.grad for name, parameter in trainable.items()})

    def official(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give values of our trainable parameters the official names and shapes."""
        result: dict[str, torch.Tensor] = {}
        table = name_table(self.method, self.model.config, self.encoder.prompt_configs["default"])
        official_names = {ours[0]: theirs for theirs, ours in table.items() if ours}
        for name, value in values.items():
            if "deep_prompt_tokens" in name:
                first = int(self.encoder.prompt_configs["default"].num_deep_layers >= 0)
                if first:
                    result["backbone.prompt_embeddings"] = value[:1]
                if len(value) > first:
                    result["backbone.deep_prompt_embeddings"] = value[first:]
            else:
                theirs = official_names[name]
                result[theirs] = value.T if theirs.endswith(TRANSPOSED) else value
        return result

    @staticmethod
    def assert_close(ours: torch.Tensor, official: torch.Tensor) -> None:
        """Compare forward tensors; the tolerance of those with entries above 1 is relative to the largest."""
        atol = FORWARD_TOLERANCE * max(1.0, official.abs().max().item())
        torch.testing.assert_close(ours, official, atol=atol, rtol=0)

    def is_noise(self, name: str) -> bool:
        """Tell whether a tensor's gradient is mathematically zero: a softmax ignores a shift by `k`'s bias."""
        match = re.fullmatch(r"decode_head\.decoder_1\.layers\.(\d+)\.multihead_attn\.k\.bias", name)
        return match is not None and int(match[1]) != self.model.config.num_decoder_layers - 1


@pytest.fixture(scope="session")
def make_golden():
    return Golden


@pytest.fixture
def base_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"
