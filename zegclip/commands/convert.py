"""`zegclip convert`: turn an official checkpoint into a model folder."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zegclip.commands.options import DTYPES, read_templates
from zegclip.errors import UsageError, sentence_of

if TYPE_CHECKING:
    from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation

CLIP_TOKENIZER = "openai/clip-vit-base-patch16"
"""All of OpenAI's CLIP models share its tokenizer, and so do the official checkpoints."""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "convert",
        help="convert an official checkpoint to a model folder",
        description="Convert an official checkpoint to a model folder. Code in the checkpoint is never run.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth or .safetensors file")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to create")
    parser.add_argument(
        "--method", choices=("zegclip", "spt-seg"), default="zegclip", help="method (default: %(default)s)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH_OR_HUB_ID",
        help=f"CLIP tokenizer (default: {CLIP_TOKENIZER} if it is in the Hub cache)",
    )
    parser.add_argument(
        "--templates-file",
        type=Path,
        metavar="FILE",
        help="text file with one prompt template per line, such as the 15 of the COCO models "
        "(default: a photo of a {})",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from zegclip import ZegClipConfig, ZegClipImageProcessor, ZegClipProcessor
    from zegclip.files import check_new_folder, new_folder
    from zegclip.modeling.convert_official_checkpoint import convert
    from zegclip.modeling.model_error import ModelError

    check_new_folder(arguments.output)
    config = ZegClipConfig()
    if arguments.templates_file is not None:
        config.prompt_templates = read_templates(arguments.templates_file)
    try:
        with torch.random.fork_rng(devices=[]):
            # The base's own decode head, which the adapter's replaces, is initialised at random and saved.
            torch.manual_seed(0)
            model = convert(arguments.checkpoint, method=arguments.method, config=config)
    except ModelError as error:
        if str(arguments.checkpoint) in str(error):
            raise
        raise UsageError(f"{arguments.checkpoint}: {error}") from error
    model.to(getattr(torch, arguments.dtype))
    tokenizer = _load_tokenizer(arguments.tokenizer, model)
    image_processor = ZegClipImageProcessor()
    processor = image_processor
    if tokenizer is not None:
        processor = ZegClipProcessor(image_processor, tokenizer, model.config.prompt_templates)
    with new_folder(arguments.output) as folder:
        model.save_with_base(str(folder))
        processor.save_pretrained(folder)
    print(f"{arguments.checkpoint}: converted to {arguments.output}.")
    if tokenizer is None:
        print(
            f"{arguments.output} still needs a CLIP tokenizer: add one with AutoTokenizer.from_pretrained"
            f"({CLIP_TOKENIZER!r}).save_pretrained({str(arguments.output)!r}), or convert with --tokenizer."
        )
    return 0


def _load_tokenizer(name: str | None, model: "ZegClipForSemanticSegmentation") -> Any:
    """Load a tokenizer that fits a model, by default CLIP's from the Hub cache; `None` if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    from zegclip.loading import check_hub_id
    from zegclip.modeling.stored_adapter import is_missing_folder

    path = name
    if path is None:
        # Even with `local_files_only`, a Hub id would send a request; a folder does not.
        cached = try_to_load_from_cache(CLIP_TOKENIZER, "tokenizer_config.json")
        if not isinstance(cached, str):
            return None
        path = os.path.dirname(cached)
    elif not is_missing_folder(path) and not os.path.isdir(path):
        check_hub_id(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        if name is None:
            return None
        raise UsageError(f"{name}: there is no tokenizer of this name ({sentence_of(error)})") from error
    text_config = model.config.clip_config.text_config
    if len(tokenizer) > text_config.vocab_size or tokenizer.eos_token_id != text_config.eos_token_id:
        if name is None:
            return None
        raise UsageError(
            f"{name}: this tokenizer does not fit. It has {len(tokenizer)} tokens and end token "
            f"{tokenizer.eos_token_id}; the model has {text_config.vocab_size} and {text_config.eos_token_id}."
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_config.max_position_embeddings)
    return tokenizer
