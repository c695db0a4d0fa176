"""Losses over one mask logit map per class and picture: focal, dice, structural similarity and cross-entropy."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # for a dynamic range of 1
SSIM_PIXELS_AT_ONCE = 2**22


def count_present_masks(
    labels: torch.Tensor, num_classes: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Find which classes occur in which picture.

    Args:
        labels: `(batch, height, width)` int64 class ids.
        num_classes: Number of classes.
        ignore_index: Label of pixels without a class.

    Returns:
        `(batch, num_classes)` bool, true where the class occurs, and the number of such pairs, at least 1, int64:
        the normaliser of focal and dice loss in the official code.
    """
    ids = torch.where(labels == ignore_index, num_classes, labels).flatten(1)
    present = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, ids, 1.0)[:, :-1] > 0
    return present, present.sum().clamp(min=1)


def count_pixels(labels: torch.Tensor, ignore_index: int, ignored_too: bool) -> torch.Tensor:
    """Count the pixels of `labels` `(batch, height, width)` int64, those without a class too or not; int64."""
    counted = torch.ones_like(labels, dtype=torch.bool) if ignored_too else labels != ignore_index
    return counted.sum()


def focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_masks: torch.Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    ignore_index: int = 255,
    ignored_as_negatives: bool = True,
) -> torch.Tensor:
    """
    Sigmoid focal loss, the mean over pixels summed over all pictures and classes, divided by `num_masks`.

    Every class map is first treated as empty; the labelled class of each pixel is then exchanged for its positive
    term. This equals the sum over one-hot targets without ever building them.

    Args:
        logits: `(batch, classes, height, width)` float32 mask logits.
        labels: `(batch, height, width)` int64 class ids.
        num_masks: Scalar normaliser, see [`count_present_masks`].
        alpha: Weight of pixels inside a mask; `1 - alpha` outside.
        gamma: Focusing exponent.
        ignore_index: Label of pixels without a class.
        ignored_as_negatives: Official behaviour: such pixels count as outside of every mask.
    """
    valid = labels != ignore_index
    negative = (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)
    if not ignored_as_negatives:
        negative = negative * valid.unsqueeze(1)
    own = logits.gather(1, labels.where(valid, 0).unsqueeze(1)).squeeze(1)
    exchanged = alpha * (-own).sigmoid() ** gamma * F.softplus(-own)
    exchanged = exchanged - (1 - alpha) * own.sigmoid() ** gamma * F.softplus(own)
    pixels = labels.shape[-2] * labels.shape[-1]
    return (negative.sum() + (exchanged * valid).sum()) / (pixels * num_masks)


def dice_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    present: torch.Tensor,
    num_masks: torch.Tensor,
    *,
    ignore_index: int = 255,
    ignored_as_negatives: bool = True,
) -> torch.Tensor:
    """
    Soft dice loss with smoothing 1, summed over the classes present in each picture, divided by `num_masks`.

    Args:
        logits: `(batch, classes, height, width)` float32 mask logits.
        labels: `(batch, height, width)` int64 class ids.
        present: `(batch, classes)` bool, see [`count_present_masks`].
        num_masks: Scalar normaliser.
        ignore_index: Label of pixels without a class.
        ignored_as_negatives: Official behaviour: ignored pixels enlarge the denominator.
    """
    num_classes = logits.shape[1]
    probabilities = logits.sigmoid().flatten(2)
    flat = labels.flatten(1)
    valid = flat != ignore_index
    ids = flat.where(valid, num_classes)
    own = probabilities.gather(1, flat.where(valid, 0).unsqueeze(1)).squeeze(1)
    bins = probabilities.new_zeros(len(labels), num_classes + 1)
    intersection = bins.scatter_add(1, ids, own)[:, :-1]
    target_area = bins.scatter_add(1, ids, torch.ones_like(own))[:, :-1]
    if not ignored_as_negatives:
        probabilities = probabilities * valid.unsqueeze(1)
    area = probabilities.sum(-1) + target_area
    return ((1 - (2 * intersection + 1) / (area + 1)) * present).sum() / num_masks


def cross_entropy_loss(logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = 255) -> torch.Tensor:
    """
    Mean cross-entropy over labelled pixels, where classes exclude each other (ZegCLIP's ablation, section 3.5).

    Args:
        logits: `(batch, classes, height, width)` float32 mask logits.
        labels: `(batch, height, width)` int64 class ids.
        ignore_index: Label of pixels that are left out.

    Returns:
        Scalar, 0 where no pixel has a label.
    """
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / count_pixels(labels, ignore_index, ignored_too=False).clamp(min=1)


def ssim_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    of_probabilities: bool = False,
    ignore_index: int = 255,
    ignored_as_negatives: bool = True,
) -> torch.Tensor:
    """
    One minus the mean structural similarity of logit maps and masks (SPT-SEG; Wang et al. 2004).

    The official code compares the raw logits with masks of 0 and 1, as if both were pictures of dynamic range 1. The
    window is a Gaussian of 11 pixels a side and a standard deviation of 1.5; zeros lie around the maps.

    Args:
        logits: `(batch, classes, height, width)` float32 mask logits.
        labels: `(batch, height, width)` int64 class ids.
        of_probabilities: Compare the sigmoid of the logits instead.
        ignore_index: Label of pixels without a class.
        ignored_as_negatives: Official behaviour: such pixels count as outside of every mask. Otherwise they are
            zero in both maps and left out of the mean.

    Returns:
        Scalar in [0, 2].
    """
    maps_at_once = max(SSIM_PIXELS_AT_ONCE // labels[0].numel(), 1)
    total = logits.new_zeros(())
    for picture, ids in zip(logits, labels, strict=True):
        for number, maps in enumerate(picture.split(maps_at_once)):
            first = number * maps_at_once
            # Its many maps of the full size are not kept for the backward pass, but made again.
            total = total + checkpoint(
                _dissimilarity,
                maps,
                ids - first,
                of_probabilities,
                ignore_index - first,
                ignored_as_negatives,
                use_reentrant=False,
                preserve_rng_state=False,
            )
    pixels = count_pixels(labels, ignore_index, ignored_too=ignored_as_negatives).clamp(min=1)
    return total / (pixels * logits.shape[1])


def _dissimilarity(
    maps: torch.Tensor, ids: torch.Tensor, of_probabilities: bool, ignore_index: int, ignored_as_negatives: bool
) -> torch.Tensor:
    """Sum of one minus the similarity over `maps` `(classes, height, width)`, of the classes 0 and on in `ids`."""
    num_classes = len(maps)
    maps = maps.sigmoid() if of_probabilities else maps
    valid = ids != ignore_index
    masks = (ids == torch.arange(num_classes, device=ids.device).view(-1, 1, 1)) & valid
    masks = masks.to(maps)
    if not ignored_as_negatives:
        maps = maps * valid
    reach = SSIM_WINDOW // 2
    gaussian = (-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * SSIM_SIGMA**2)).exp()
    gaussian = (gaussian / gaussian.sum()).to(maps).expand(num_classes, 1, 1, -1)

    def blur(values: torch.Tensor) -> torch.Tensor:
        # The window is a product of a row and a column. On CPUs, one group a class is far quicker than more pictures.
        values = F.conv2d(values, gaussian.mT, padding=(reach, 0), groups=num_classes)
        return F.conv2d(values, gaussian, padding=(0, reach), groups=num_classes)

    # Differences of squares do not survive the half precision that autocast gives to convolutions.
    with torch.autocast(maps.device.type, enabled=False):
        mean_x, mean_y = blur(maps), blur(masks)
        # What rounding makes negative would bring the denominator close to zero, where logits are large and flat.
        variance_x = (blur(maps * maps) - mean_x * mean_x).clamp(min=0)
        variance_y = mean_y - mean_y * mean_y  # a mask is its own square
        covariance = blur(maps * masks) - mean_x * mean_y
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    dissimilarity = 1 - similarity
    return (dissimilarity if ignored_as_negatives else dissimilarity * valid).sum()


@torch.no_grad()
def fill_pseudo_labels(
    logits: torch.Tensor, labels: torch.Tensor, class_ids: Sequence[int], unlabelled: int = -1
) -> torch.Tensor:
    """
    Give unlabelled pixels the best of some classes, as the official self-training does.

    There is no threshold and no teacher: the scores are those of the very forward pass that is being trained.

    Args:
        logits: `(batch, classes, height, width)` mask logits of all classes at the labels' resolution.
        labels: `(batch, height, width)` int64 ids; `unlabelled` marks pixels to fill.
        class_ids: Ids to choose from, the unseen classes.
        unlabelled: The mark.

    Returns:
        Labels with every marked pixel filled; all others, ignored ones included, as they were.
    """
    ids = torch.tensor(list(class_ids), device=logits.device)
    # Of the sigmoid, as in the official code: where several are saturated, the first of them wins.
    best = ids[logits.index_select(1, ids).sigmoid().argmax(dim=1)]
    return torch.where(labels == unlabelled, best, labels)


__all__ = [
    "count_pixels",
    "count_present_masks",
    "cross_entropy_loss",
    "dice_loss",
    "fill_pseudo_labels",
    "focal_loss",
    "ssim_loss",
]
