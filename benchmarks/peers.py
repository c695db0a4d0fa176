"""What the methods' speed is compared with: transformers' own models, and the official way of merging windows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from real_size import SIDE
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPVisionConfig, CLIPVisionModel

from zegclip.processing.merging import resize_maps
from zegclip.processing.windows import WindowLogits

NAMES_AT_ONCE = 20


def bare_tower(tokens: int, device: str, dtype: torch.dtype, attention: str) -> tuple[Any, Callable[[int], Any]]:
    """Return CLIP's vision tower and a pass through its layers with that many tokens, whatever the picture."""
    config = CLIPVisionConfig(patch_size=16, image_size=SIDE, attn_implementation=attention)
    tower = CLIPVisionModel(config).to(device, dtype).eval()
    picture = torch.randn(1, 3, SIDE, SIDE, device=device, dtype=dtype)
    more = torch.randn(1, tokens - (SIDE // 16) ** 2 - 1, config.hidden_size, device=device, dtype=dtype)

    def through(batch: int) -> Any:
        states = tower.pre_layrnorm(tower.embeddings(picture.expand(batch, -1, -1, -1)))
        states = torch.cat([states, more.expand(batch, -1, -1)], dim=1)
        return tower.encoder(inputs_embeds=states).last_hidden_state

    return tower, through


def clipseg(device: str) -> CLIPSegForImageSegmentation:
    """Return a CLIPSeg with the sizes of the published ViT-B/16 one (rd64), and random weights."""
    torch.manual_seed(0)
    config = CLIPSegConfig(vision_config={"patch_size": 16}, reduce_dim=64)
    return CLIPSegForImageSegmentation(config).to(device).eval()


def clipseg_steps(model: CLIPSegForImageSegmentation, count: int) -> dict[str, Callable[[], None]]:
    """Return steps that segment one picture into that many names, given as CLIPSeg's conditional embeddings."""
    embeds = torch.randn(count, model.config.projection_dim, device=model.device).split(NAMES_AT_ONCE)
    small, large = (torch.randn(1, 3, side, side, device=model.device) for side in (352, 512))

    def each_pair(picture: torch.Tensor) -> None:
        for names in embeds:
            batch = picture.expand(len(names), -1, -1, -1)
            model(pixel_values=batch, conditional_embeddings=names, interpolate_pos_encoding=True)

    def tower_once(picture: torch.Tensor) -> None:
        states = model.clip.vision_model(picture, output_hidden_states=True, interpolate_pos_encoding=True)
        activations = [states.hidden_states[index + 1] for index in model.extract_layers]
        for names in embeds:
            model.decoder([state.expand(len(names), -1, -1) for state in activations], names)

    return {
        "CLIPSeg at 352": partial(each_pair, small),
        "CLIPSeg at 512": partial(each_pair, large),
        "CLIPSeg at 512, tower once": partial(tower_once, large),
    }


def merge_directly(windows: WindowLogits, target_size: tuple[int, int]) -> torch.Tensor:
    """Return the best name of each pixel, by way of all scores at full resolution."""
    scores = torch.zeros(windows.logits.shape[1], windows.height, windows.width)
    coverage = torch.zeros(windows.height, windows.width)
    for logits, (top, left, bottom, right) in zip(windows.logits, windows.boxes, strict=True):
        scores[:, top:bottom, left:right] += resize_maps(logits, bottom - top, right - left).sigmoid()
        coverage[top:bottom, left:right] += 1
    scores /= coverage
    if scores.shape[1:] != target_size:
        scores = resize_maps(scores, *target_size)
    return scores.argmax(dim=0)
