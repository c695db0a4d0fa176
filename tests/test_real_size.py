"""The sizes of the papers, with random weights: one training step of ViT-B/16 at 512x512."""

import pytest
import torch
from peft import get_peft_model

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation, ZegClipImageProcessorPil
from zegclip.processing.benchmarks_zegclip import benchmark_split
from zegclip.trainer import ZegClipTrainer, ZegClipTrainingArguments


class Processor:
    image_processor = ZegClipImageProcessorPil()


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_one_training_step(tmp_path, bf16):
    split = benchmark_split("voc")
    model = get_peft_model(ZegClipForSemanticSegmentation(ZegClipConfig()), DeepPromptConfig(num_tokens=10))
    trainer = ZegClipTrainer(
        model=model,
        args=ZegClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=bf16, report_to="none"),
        processing_class=Processor(),
        class_embeds=torch.nn.functional.normalize(torch.randn(20, 512), dim=-1),
        split=split,
    )
    labels = torch.randint(15, (2, 512, 512))
    labels[:, :50] = 255
    loss = trainer.training_step(model, {"pixel_values": torch.randn(2, 3, 512, 512), "labels": labels})
    assert loss.isfinite()
    trained = 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
            trained += parameter.numel()
    assert trained == 8_039_168
