"""
Train a zero-shot segmentation adapter: `python train.py [CONFIG.yaml] [--field value ...]`.

Also `accelerate launch train.py ...`. Without a configuration it trains on the generated picture world, offline.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from zegclip import DEFAULT_MODEL
from zegclip.arguments import complaints_of, parse_arguments
from zegclip.data import load_evaluation_data, load_training_data, picture_world_split
from zegclip.loading import load_base, load_processor
from zegclip.modeling.tuner_zegclip import DeepPromptConfig
from zegclip.trainer import ZegClipTrainer

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "zegclip_picture_world_inductive.yaml"


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save the adapter with its processor in the output folder, and return the last evaluation's figures."""
    model_args, data_args, training_args = parse_arguments(argv, DEFAULT_CONFIG)
    set_seed(training_args.seed)
    source = model_args.model or DEFAULT_MODEL
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    split = picture_world_split(data_args.eval_split)

    model = load_base(source, model_args.config_overrides() | {"seen_class_names": split.seen_names})
    model.config.id2label = dict(enumerate(split.names))
    model.config.label2id = {name: index for index, name in enumerate(split.names)}
    model.config.prompt_templates = processor.prompt_templates
    names = processor(text=list(split.names), return_tensors="pt")
    with torch.no_grad():
        class_embeds = model.eval().get_class_embeds(**names)
    prompts = DeepPromptConfig(
        num_tokens=model_args.num_prompt_tokens,
        num_deep_layers=model_args.num_deep_layers,
        dropout=model_args.prompt_dropout,
    )
    model = get_peft_model(model, prompts)
    model.print_trainable_parameters()

    trainer = ZegClipTrainer(
        model=model,
        args=training_args,
        train_dataset=load_training_data(data_args, processor, split),
        eval_dataset=load_evaluation_data(data_args, processor, split),
        processing_class=processor,
        class_embeds=class_embeds,
        split=split,
    )
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint is None and Path(training_args.output_dir).is_dir():
        checkpoint = get_last_checkpoint(training_args.output_dir)
    if checkpoint is not None:
        print(f"Resuming from {checkpoint}.")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    # With it, Auto classes and pipeline open the adapter's folder, whatever its base is.
    model.config.save_pretrained(training_args.output_dir)
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    with complaints_of("train.py"):
        main()
