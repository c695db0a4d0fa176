"""The sizes of the papers, with random weights: one training step of ViT-B/16 at 512x512."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from probe_training import Processor
from transformers import TrainerCallback

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.processing.benchmarks import benchmark_split
from zegclip.training.arguments import parse_arguments
from zegclip.training.trainer import ZegClipTrainer
from zegclip.training.training_arguments import ZegClipTrainingArguments

CONFIGS = Path(__file__).parents[1] / "configs"
# "a photo of a" by CLIP's tokenizer.
TEMPLATE_IDS = [49406, 320, 1125, 539, 320, 49407]


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        labels = torch.randint(15, (512, 512))
        labels[:50] = 255
        return {"pixel_values": torch.randn(3, 512, 512), "labels": labels}


class Gradients(TrainerCallback):
    """Looks at the gradients before the optimiser does."""

    seen: dict[str, torch.Tensor | None]

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def names_to_train_on(text_prompts):
    """20 made-up ones: embeddings, or, where the text tower is trained, tokens of one to three words each."""
    if text_prompts is None:
        return {"class_embeds": torch.nn.functional.normalize(torch.randn(20, 512), dim=-1)}
    *template, end = TEMPLATE_IDS
    words = [torch.randint(1000, 40_000, (1 + index % 3,)).tolist() for index in range(20)]
    padding = [[end] * (3 - len(name)) for name in words]
    ids = [template + name + [end] + rest for name, rest in zip(words, padding)]
    mask = [[1] * (9 - len(rest)) + [0] * len(rest) for rest in padding]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("method", "expected"), [("zegclip", 8_039_168), ("spt_seg", 10_524_224), ("ldvc", 10_717_952)]
)
def test_one_training_step(tmp_path, method, expected, bf16):
    given, _, _ = parse_arguments([str(CONFIGS / f"{method}_voc_inductive.yaml"), "--use_cpu"])
    model = ZegClipForSemanticSegmentation(ZegClipConfig(**given.config_overrides()))
    model = get_peft_model(model, given.prompt_config(grid_size=32, text_prompt_ids=TEMPLATE_IDS))
    gradients = Gradients()
    trainer = ZegClipTrainer(
        model=model,
        args=ZegClipTrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=bf16,
            per_device_train_batch_size=2,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Pictures(),
        processing_class=Processor(),
        names=names_to_train_on(given.text_prompts),
        split=benchmark_split("voc"),
        callbacks=[gradients],
    )
    trainer.train()
    assert 0 < trainer.state.log_history[0]["loss"] < float("inf")
    trained = 0
    for name, parameter in model.named_parameters():
        gradient = gradients.seen[name]
        assert (gradient is not None) == parameter.requires_grad, name
        if gradient is not None:
            assert gradient.isfinite().all(), name
            assert gradient.abs().sum() > 0, name
            trained += parameter.numel()
    assert trained == expected
