"""Pretrains the tiny CLIP of the picture world on pictures and captions alone, with CLIP's own loss.

The CLIP of the embedded model was trained with

    OMP_NUM_THREADS=1 python -m zegclip.picture_world.pretrain --output outputs/clips/0

On a CPU, one process per core is fastest: several seeds are best trained side by side.
"""

import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer, HfArgumentParser, get_cosine_schedule_with_warmup

from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.input_error import InputError
from zegclip.processing.processing_zegclip import ZegClipProcessor

from .classes import UNSEEN_TEST, class_ids
from .crops import captioned_windows, draw_scenes
from .dataset import scene_seeds
from .evaluation import report
from .tiny_clip import WINDOW_SIDE, CaptionTraining, build_model, normalise
from .tokenizer import build_tokenizer

logger = logging.getLogger(__name__)

# Outside the seeds of the data sets, so no split contains a scene of pretraining.
_FIRST_SEED = 1 << 61
_GAIN = 0.15
_CLOSE_UPS = 660  # In an evaluation.


@dataclass
class PretrainArguments:
    """Settings of the pretraining."""

    output: str = field(metadata={"help": "folder for the model and its processor"})
    steps: int = field(default=6000, metadata={"help": "number of optimiser steps"})
    batch_size: int = field(default=64, metadata={"help": "pictures per step and process"})
    scenes: int = field(default=24_000, metadata={"help": "scenes drawn before training, divided among the processes"})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "peak of the cosine schedule"})
    weight_decay: float = field(default=0.05, metadata={"help": "weight decay of AdamW"})
    patch_size: int = field(default=6, metadata={"help": "side of a patch in pixels"})
    width: int = field(default=160, metadata={"help": "width of the vision tower, a multiple of 32"})
    layers: int = field(default=4, metadata={"help": "layers of the vision tower"})
    withhold: bool = field(
        default=False, metadata={"help": "whether no caption names a class that is unseen for test: a control"}
    )
    precision: str = field(default="bf16", metadata={"help": "mixed precision: bf16 or no"})
    eval_every: int = field(default=1000, metadata={"help": "steps between evaluations and saves"})
    seed: int = field(default=0, metadata={"help": "random seed of weights, scenes, windows and captions"})
    quick: bool = field(default=False, metadata={"help": "a smaller run of at most 15 minutes on 2 cores"})

    def __post_init__(self) -> None:
        if self.quick:
            self.steps, self.scenes = min(self.steps, 1200), min(self.scenes, 8000)
        if self.patch_size < 1 or WINDOW_SIDE % self.patch_size:
            raise InputError(f"patch_size must divide {WINDOW_SIDE}, got {self.patch_size}.")
        if self.width < 32 or self.width % 32:
            raise InputError(f"width must be a multiple of 32, got {self.width}.")


def save(model: CLIPModel, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Write the model and its processor to a temporary folder, then move each file into place."""
    part = output.with_name(output.name + ".part")
    model.save_pretrained(part)
    pictures = ZegClipImageProcessor(size={"shortest_edge": 96}, window_size=WINDOW_SIDE, window_stride=15)
    ZegClipProcessor(pictures, tokenizer).save_pretrained(part)
    output.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        os.replace(file, output / file.name)
    part.rmdir()


def pretrain(arguments: PretrainArguments) -> CLIPModel:
    """Pretrain a tiny CLIP, with logs, evaluations and saves in between.

    Args:
        arguments: the settings.

    Returns:
        The trained model in evaluation mode.
    """
    accelerator = Accelerator(mixed_precision=arguments.precision)
    rank, main = accelerator.process_index, accelerator.is_main_process
    set_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, patch_size=arguments.patch_size, width=arguments.width, layers=arguments.layers)
    # At these sizes plain matrix products are faster than the fused attention of a CPU.
    model.set_attn_implementation("eager")
    share = arguments.scenes // accelerator.num_processes
    first = _FIRST_SEED + arguments.seed * arguments.scenes + rank * share
    scenes = draw_scenes(range(first, first + share), progress=main)
    rng = np.random.default_rng([arguments.seed, rank])
    withheld = class_ids(UNSEEN_TEST) if arguments.withhold else ()
    batches = captioned_windows(scenes, WINDOW_SIDE, arguments.batch_size, rng, withheld=withheld)

    # Weight decay would pull the logarithm of the scale, and so the scale, down.
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in model.named_parameters() if name != "logit_scale"]},
        {"params": [model.logit_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=arguments.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, max(arguments.steps // 20, 1), arguments.steps)
    training, optimizer = accelerator.prepare(CaptionTraining(model), optimizer)
    close_ups = scene_seeds("tuning")[:_CLOSE_UPS]
    if main:
        size = sum(weight.numel() for weight in model.parameters()) / 1e6
        logger.info("%.2f M parameters, %d processes, %s", size, accelerator.num_processes, arguments)

    start = time.perf_counter()
    for step in tqdm(range(1, arguments.steps + 1), desc="pretraining", unit="step", disable=not main, mininterval=5):
        batch = next(batches)
        gains = torch.from_numpy(rng.uniform(1 - _GAIN, 1 + _GAIN, (len(batch.captions), 3)).astype(np.float32))
        tokens = tokenizer(batch.captions, padding=True, truncation=True, return_tensors="pt")
        loss = training(
            normalise(batch.pictures.to(accelerator.device), gains.to(accelerator.device)),
            dict(tokens.to(accelerator.device)),
            batch.matches.to(accelerator.device),
        )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(training.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if main and (step % arguments.eval_every == 0 or step == arguments.steps):
            figures = {
                "step": step,
                "minutes": round((time.perf_counter() - start) / 60, 1),
                "loss": round(loss.item(), 3),
                "logit_scale": round(model.logit_scale.exp().item(), 1),
                **report(model, tokenizer, close_ups),
            }
            logger.info(json.dumps(figures))
            save(model, tokenizer, Path(arguments.output).absolute())
    accelerator.end_training()
    return model.eval()


def main() -> None:
    """Parse the command line and pretrain."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    (arguments,) = HfArgumentParser(PretrainArguments).parse_args_into_dataclasses()
    pretrain(arguments)


if __name__ == "__main__":
    main()
