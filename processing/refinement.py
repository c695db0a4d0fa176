"""
Pixel-adaptive mask refinement (PAMR): scores move along pixels of the same colour, so that masks follow outlines.

Source: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels" (CVPR 2020), with the numbers of
NACLIP.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F

from .resizing import resize_matrix

STEPS = 10
DILATIONS = (8, 16)
# How far a score can move.
REACH = STEPS * max(DILATIONS)
# Side of the tiles, in pixels, whose affinities are in memory at a time.
TILE_SIDE = 512


@torch.no_grad()
def refine(scores: torch.Tensor, picture: torch.Tensor, tile_side: int = TILE_SIDE) -> torch.Tensor:
    """
    Refine the scores of one picture.

    Args:
        scores: `(classes, height, width)`, of any meaning; NACLIP refines logits.
        picture: `(3, height, width)`, the processed picture, which is resized to the size of the scores.
        tile_side: Side of the tiles in pixels.

    Returns:
        Refined scores, a new tensor of the same shape, float32.
    """
    refined = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    for tile, maps in refined_tiles(scores, picture, tile_side):
        for target, values in zip(refined, maps, strict=True):
            target[tile] = values
    return refined


def refined_tiles(
    scores: torch.Tensor, picture: torch.Tensor, tile_side: int = TILE_SIDE
) -> Iterator[tuple[tuple[slice, slice], Iterator[torch.Tensor]]]:
    """
    Refine tile by tile, each with a border that makes the result that of the whole picture.

    Args:
        As [`refine`].

    Yields:
        Rows and columns of a tile, and its refined maps `(height, width)` float32, one class after the other.
    """
    height, width = scores.shape[-2:]
    down = resize_matrix(picture.shape[-2], height, picture.device)
    across = resize_matrix(picture.shape[-1], width, picture.device)
    for top in range(0, height, tile_side):
        for left in range(0, width, tile_side):
            rows = slice(max(top - REACH, 0), min(top + tile_side + REACH, height))
            columns = slice(max(left - REACH, 0), min(left + tile_side + REACH, width))
            # One colour of this part at a time.
            weights = affinity(down[rows] @ colour @ across[columns].T for colour in picture.float())
            cut = (
                slice(top - rows.start, top - rows.start + tile_side),
                slice(left - columns.start, left - columns.start + tile_side),
            )
            maps = (_spread(values.float(), weights)[cut] for values in scores[:, rows, columns])
            yield (slice(top, top + tile_side), slice(left, left + tile_side)), maps
            del weights  # before those of the next tile


def affinity(colours: Iterable[torch.Tensor]) -> torch.Tensor:
    """
    Return how much each pixel takes from its neighbours, eight at each dilation.

    It is the softmax of `-mean |I - I_j| / (1e-8 + 0.1 std)` over the neighbours `j`, the mean over colours; `std` is
    the standard deviation of a colour in the neighbourhoods, the pixel itself counted once for each.

    Args:
        colours: `(height, width)` float32 each.

    Returns:
        `(16, height, width)` float32, whose sum over the neighbours is 1.
    """
    # All in place and one colour at a time: these maps are what refinement needs most of its memory for.
    similarity = torch.empty(0)
    count = 9 * len(DILATIONS)
    for number, colour in enumerate(colours, start=1):
        mean = len(DILATIONS) * colour
        for neighbour in _neighbours(colour):
            mean += neighbour
        mean /= count
        variance = (colour - mean).square_().mul_(len(DILATIONS))
        for neighbour in _neighbours(colour):
            variance += (neighbour - mean).square_()
        del mean
        scale = variance.div_(count - 1).sqrt_().mul_(0.1).add_(1e-8)
        if number == 1:
            similarity = colour.new_zeros(8 * len(DILATIONS), *colour.shape)
        for row, neighbour in zip(similarity, _neighbours(colour), strict=True):
            row -= (colour - neighbour).abs_().div_(scale)
    similarity /= number
    similarity -= similarity.amax(dim=0)
    similarity.exp_()
    similarity /= similarity.sum(dim=0)
    return similarity


def _spread(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    for _ in range(STEPS):
        spread = torch.zeros_like(values)
        for weight, neighbour in zip(weights, _neighbours(values), strict=True):
            spread.addcmul_(weight, neighbour)
        values = spread
    return values


def _neighbours(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of `(height, width)` shifted to each neighbour; the border is replicated."""
    height, width = values.shape
    border = max(DILATIONS)
    padded = F.pad(values[None, None], [border] * 4, mode="replicate")[0, 0]
    for dilation in DILATIONS:
        for down in (-dilation, 0, dilation):
            for right in (-dilation, 0, dilation):
                if down or right:
                    top, left = border + down, border + right
                    yield padded[top : top + height, left : left + width]


__all__ = ["REACH", "affinity", "refine", "refined_tiles"]
