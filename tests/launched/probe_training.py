"""
Run under torchrun by `tests/test_processes.py`: trains a tiny model on random pictures and writes what it sees.

    torchrun --nproc_per_node 2 tests/launched/probe_training.py CLIP_FOLDER OUTPUT [PASSES]

In double precision, so that what several processes or passes do differently is more than rounding.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from transformers import set_seed

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation, ZegClipImageProcessorPil
from zegclip.processing.class_split import ClassSplit
from zegclip.training.trainer import ZegClipTrainer
from zegclip.training.training_arguments import ZegClipTrainingArguments

SPLIT = ClassSplit(names=("a", "b", "c", "d"), seen_ids=(0, 1, 3), unseen_ids=(2,))


class Processor:
    """What the Trainer needs of one."""

    image_processor = ZegClipImageProcessorPil(size={"shortest_edge": 32}, window_size=32, window_stride=20)

    def save_pretrained(self, folder: str) -> None:
        self.image_processor.save_pretrained(folder)


class Pictures(torch.utils.data.Dataset):
    """Random pictures whose labels depend on their colours; `classes` of them occur, in sizes that differ."""

    def __init__(self, count: int, classes: int, sizes: tuple[tuple[int, int], ...]):
        self.count, self.classes, self.sizes = count, classes, sizes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        height, width = self.sizes[index % len(self.sizes)]
        # Of other numbers of classes in each picture.
        labels = torch.randint(1 + index % self.classes, (height, width), generator=generator)
        labels[: index % 3] = 255
        pixel_values = torch.randn(3, height, width, generator=generator, dtype=torch.float64)
        return {"pixel_values": pixel_values, "labels": labels}


def main(clip: str, output: str, passes: str = "1") -> None:
    set_seed(0)
    args = ZegClipTrainingArguments(
        output_dir=output,
        use_cpu=True,
        total_train_batch_size=4,
        gradient_accumulation_steps=int(passes),
        max_steps=3,
        warmup_steps=0,
        learning_rate=1e-2,
        # A loss that is scaled by mistake would leave Adam's steps as they are, but not these.
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        per_device_eval_batch_size=2,
    )
    model = ZegClipForSemanticSegmentation.from_pretrained(
        clip,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_dropout=0.0,
        # All terms, whose normalisers differ.
        ssim_weight=1.0,
        cross_entropy_weight=1.0,
        ignored_pixels_as_negatives=False,
    )
    torch.manual_seed(1)
    model = get_peft_model(model, DeepPromptConfig(num_tokens=2, dropout=0.0)).double()
    trainer = ZegClipTrainer(
        model=model,
        args=args,
        train_dataset=Pictures(12, 3, ((32, 32),)),
        eval_dataset=Pictures(7, 4, ((32, 32), (40, 24), (24, 50))),
        processing_class=Processor(),
        names={"class_embeds": torch.nn.functional.normalize(torch.randn(4, 32, dtype=torch.float64), dim=-1)},
        split=SPLIT,
    )
    # Before training on purpose: this must not leave the processes to train on their own.
    figures = trainer.evaluate()
    trainer.train()
    trained = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    spread = 0.0
    if dist.is_initialized():
        everyone = [torch.empty_like(trained) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, trained)
        spread = max((other - trained).abs().max().item() for other in everyone)
    if trainer.is_world_process_zero():
        result = {
            "processes": args.world_size,
            "wrapper": type(trainer.model_wrapped).__name__,
            "spread": spread,
            "trained": trained.tolist(),
            "figures": {name: figures[f"eval_{name}"] for name in ("pacc", "miou_seen", "miou_unseen", "hiou")},
            "counts": trainer.class_counts.tolist(),
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        }
        Path(output, "seen.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
