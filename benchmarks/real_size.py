"""The methods on ViT-B/16 at 512x512 with random weights, as their configurations for PASCAL VOC describe them."""

import math
from pathlib import Path

import torch
from peft import get_peft_model

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.training.arguments import parse_arguments

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = {
    "ZegCLIP": "zegclip_voc_inductive.yaml",
    "SPT-SEG": "spt_seg_voc_inductive.yaml",
    "LDVC": "ldvc_voc_inductive.yaml",
}
SIDE = 512
# "a photo of a" by CLIP's tokenizer, and how many tokens a name behind it has.
TEMPLATE_IDS = [49406, 320, 1125, 539, 320, 49407]
NAME_LENGTH = 3


def build(method: str) -> ZegClipForSemanticSegmentation:
    """Return a method's model in training mode, on the CPU in float32; all but prompts and decode head is frozen."""
    model_args, data_args, _ = parse_arguments([str(CONFIGS / METHODS[method]), "--use_cpu"])
    torch.manual_seed(0)
    base = ZegClipForSemanticSegmentation(ZegClipConfig(**model_args.config_overrides()))
    patch_size = base.config.clip_config.vision_config.patch_size
    grid_size = math.ceil((data_args.crop_size or SIDE) / patch_size)
    return get_peft_model(base, model_args.prompt_config(grid_size, TEMPLATE_IDS)).get_base_model()


def name_embeds(model: ZegClipForSemanticSegmentation, count: int) -> torch.Tensor:
    """Return random class embeddings `(count, dim)`, in the model's precision and on its device."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(count, model.config.clip_config.projection_dim, generator=generator)
    return torch.nn.functional.normalize(embeds, dim=-1).to(model.device, model.dtype)


def name_tokens(model: ZegClipForSemanticSegmentation, count: int) -> torch.Tensor:
    """Return token ids `(count, length)` of random names behind the template, on the model's device."""
    *template, end = TEMPLATE_IDS
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1000, end - 1, (count, NAME_LENGTH), generator=generator).tolist()
    return torch.tensor([[*template, *name, end] for name in words], device=model.device)


def pictures(model: ZegClipForSemanticSegmentation, batch: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Return random pictures `(batch, 3, height, width)`, in the model's precision and on its device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator).to(model.device, model.dtype)
