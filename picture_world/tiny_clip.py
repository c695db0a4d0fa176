"""The tiny CLIP of the picture world: architecture, initialisation, features and pretraining loss."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .tokenizer import MODEL_MAX_LENGTH, vocabulary_words

# Mean and standard deviation of the papers' image processing, in 0..255.
IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)
WINDOW_SIDE = 48
# Where the scale starts. CLIP's starts from 1 / 0.07 and ends at its limit of 100, and its names lie in a narrow cone:
# the mean cosine of VOC's 20 names is 0.81 in ViT-B/16. Here the scale falls to about 28 and the mean cosine of two
# names ends near 0.3; from a small start, names would be further apart, from 100 training is slow.
_LOGIT_SCALE = 50.0


def build_model(tokenizer: CLIPTokenizer, *, patch_size: int, width: int, layers: int) -> CLIPModel:
    """Build a CLIP with fresh weights and sine-cosine positions.

    Args:
        tokenizer: gives the size of the vocabulary and the special ids.
        patch_size: side of a patch in pixels; divides 48.
        width: width of the vision tower, a multiple of 32.
        layers: number of its layers.

    Returns:
        The model in training mode.
    """
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MODEL_MAX_LENGTH,
            "projection_dim": 128,
            **ids,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": WINDOW_SIDE,
            "patch_size": patch_size,
            "projection_dim": 128,
        },
        projection_dim=128,
        **ids,
        logit_scale_init_value=math.log(_LOGIT_SCALE),
        # All words of the captions; the commands warn about any other.
        vocabulary=vocabulary_words(),
    )
    model = CLIPModel(config)
    positions = model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        positions[1:] = 0.2 * sine_cosine_positions(WINDOW_SIDE // patch_size, width)
    return model.train()


def sine_cosine_positions(grid: int, width: int) -> torch.Tensor:
    """Return a fixed table (grid * grid, width) of sines and cosines of the row and the column, in -1..1."""
    steps = torch.arange(grid, dtype=torch.float32)
    angles = steps[:, None] / 100.0 ** (torch.arange(width // 4) / (width // 4))
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def normalise(pictures: torch.Tensor, gains: torch.Tensor | None = None) -> torch.Tensor:
    """Turn pictures (batch, H, W, 3) in 0..255 into pixel values (batch, 3, H, W), with optional gains (batch, 3)."""
    pixels = pictures.permute(0, 3, 1, 2).float()
    if gains is not None:
        pixels = (pixels * gains[..., None, None]).clamp(0, 255)
    return (pixels - pixels.new_tensor(IMAGE_MEAN)[:, None, None]) / pixels.new_tensor(IMAGE_STD)[:, None, None]


def picture_features(model: CLIPModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the unit-length features of pictures (batch, dim)."""
    pictures = model.visual_projection(model.vision_model(pixel_values).pooler_output)
    return functional.normalize(pictures.float(), dim=-1)


def text_features(model: CLIPModel, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the unit-length features (texts, dim) of tokens: `input_ids` and `attention_mask` (texts, length)."""
    outputs = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return functional.normalize(model.text_projection(outputs.pooler_output).float(), dim=-1)


class CaptionTraining(nn.Module):
    """A CLIP with its contrastive loss between whole pictures and captions.

    Args:
        model: the CLIP.
    """

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: torch.Tensor, tokens: dict[str, torch.Tensor], matches: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            pixel_values: pictures (B, 3, H, W).
            tokens: `input_ids` and `attention_mask` (B, L) of the captions.
            matches: (B, B) bool, pictures by captions; every row and every column holds at least one True.

        Returns:
            The loss, a scalar.
        """
        pictures, texts = picture_features(self.model, pixel_values), text_features(self.model, tokens)
        return _match_loss(self.model.logit_scale.exp().clamp(max=100) * pictures @ texts.T, matches)


def _match_loss(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (B, T) with targets uniform over the matches, averaged over both directions."""
    targets = matches.float()
    to_texts = functional.cross_entropy(logits, targets / targets.sum(dim=1, keepdim=True))
    to_pictures = functional.cross_entropy(logits.T, (targets / targets.sum(dim=0)).T)
    return (to_texts + to_pictures) / 2
