"""Losses over one mask logit map per class and picture: focal, dice, structural similarity and cross-entropy."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .configuration_zegclip import ZegClipConfig
from .loss_maps import (
    PIXELS_AT_ONCE,
    Maps,
    count_pixels,
    count_present_masks,
    resize,
    stable_sigmoid,
    sum_each_map,
)
from .model_error import ModelError

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # for a dynamic range of 1


def compute_loss(
    config: ZegClipConfig, logits: torch.Tensor, labels: torch.Tensor, pseudo_class_ids: Sequence[int] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    Compute the weighted loss terms at the labels' resolution, at least in float32 (paper section 3.5).

    Args:
        config: Has the weights and the ignore rule.
        logits: `(batch, classes, height, width)` mask logits on the patch grid.
        labels: `(batch, height, width)` ids into the classes, the ignore index or, with `pseudo_class_ids`, -1 for
            pixels to fill.
        pseudo_class_ids: Ids of the classes from which pixels labelled -1 get the best, by these very logits
            (transductive self-training).

    Returns:
        The terms that have a weight, and what each of them is divided by, see [`count_labels`].

    Raises:
        ModelError: If the labels are of another shape, or hold an id without a class.
    """
    num_classes = logits.shape[1]
    if labels.is_floating_point():
        raise ModelError(f"labels are class ids, whole numbers, but they are {labels.dtype}.")
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ModelError(f"labels must be ({len(logits)}, height, width), not {tuple(labels.shape)}.")
    labels = labels.to(logits.device).long()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if pseudo_class_ids is not None:
        labels = fill_pseudo_labels(logits, labels, pseudo_class_ids)
    counts = count_labels(config, labels, num_classes)
    ignore_index, negatives = config.semantic_loss_ignore_index, config.ignored_pixels_as_negatives
    present, num_masks = count_present_masks(labels, num_classes, ignore_index)
    sums: dict[str, Callable[[Maps], torch.Tensor]] = {}
    if config.focal_weight:
        sums["focal"] = partial(
            _sum_focal, alpha=config.focal_alpha, gamma=config.focal_gamma, ignored_as_negatives=negatives
        )
    if config.dice_weight:
        sums["dice"] = partial(_sum_errors_and_hits, ignored_as_negatives=negatives)
    if config.ssim_weight:
        sums["ssim"] = partial(
            _sum_dissimilarity, of_probabilities=config.ssim_of_probabilities, ignored_as_negatives=negatives
        )
    of_maps = dict(zip(sums, sum_each_map(list(sums.values()), logits, labels, ignore_index), strict=True))
    terms = {}
    if config.focal_weight:
        terms["loss_focal"] = config.focal_weight * _average_focal(of_maps["focal"], labels, num_masks)
    if config.dice_weight:
        terms["loss_dice"] = config.dice_weight * _average_dice(of_maps["dice"], present, num_masks)
    if config.ssim_weight:
        terms["loss_ssim"] = config.ssim_weight * _average_ssim(of_maps["ssim"], labels, ignore_index, negatives)
    if config.cross_entropy_weight:
        entropy = cross_entropy_loss(logits, labels, ignore_index=ignore_index)
        terms["loss_cross_entropy"] = config.cross_entropy_weight * entropy
    return terms, {name: counts[name] for name in terms}


def count_labels(config: ZegClipConfig, labels: torch.Tensor, num_classes: int) -> dict[str, torch.Tensor]:
    """
    Count what each loss term is divided by.

    Args:
        config: Has the ignore rule.
        labels: `(batch, height, width)` int64 ids into the classes, or the ignore index.
        num_classes: Number of classes.

    Returns:
        Scalars, int64: present masks for `loss_focal` and `loss_dice`, pixels for `loss_ssim` and
        `loss_cross_entropy`.

    Raises:
        ModelError: If a label is neither an id nor the ignore index, or the ignore index is an id.
    """
    ignore_index = config.semantic_loss_ignore_index
    if 0 <= ignore_index < num_classes:
        raise ModelError(
            f"semantic_loss_ignore_index={ignore_index} is the id of one of the {num_classes} class names, whose "
            "pixels would be ignored: give the configuration a larger one, such as 65535, and use it in labels."
        )
    if not torch.compiler.is_compiling():
        unknown = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
        if unknown.any():
            raise ModelError(
                f"labels contain the id {labels[unknown][0].item()}, outside of the {num_classes} class names "
                f"(0 to {num_classes - 1}, or {ignore_index} to ignore)."
            )
    present, _ = count_present_masks(labels, num_classes, ignore_index)
    return {
        "loss_focal": present.sum(),
        "loss_dice": present.sum(),
        "loss_ssim": count_pixels(labels, ignore_index, ignored_too=config.ignored_pixels_as_negatives),
        "loss_cross_entropy": count_pixels(labels, ignore_index, ignored_too=False),
    }


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

    Args:
        logits: `(batch, classes, rows, columns)` float32 mask logits, resized to the labels.
        labels: `(batch, height, width)` int64 class ids.
        num_masks: Scalar normaliser, see [`count_present_masks`].
        alpha: Weight of pixels inside a mask; `1 - alpha` outside.
        gamma: Focusing exponent.
        ignore_index: Label of pixels without a class.
        ignored_as_negatives: Official behaviour: such pixels count as outside of every mask.
    """
    term = partial(_sum_focal, alpha=alpha, gamma=gamma, ignored_as_negatives=ignored_as_negatives)
    [sums] = sum_each_map([term], logits, labels, ignore_index)
    return _average_focal(sums, labels, num_masks)


def _sum_focal(maps: Maps, alpha: float, gamma: float, ignored_as_negatives: bool) -> torch.Tensor:
    # What lies below exp(-80) adds nothing, and with an exponent below 1 its gradient would be infinite times 0.
    errors = maps.errors if gamma >= 1 else maps.errors.clamp(min=math.exp(-80))
    values = errors**gamma * F.softplus(maps.wrong)
    if maps.inside is None:
        return (1 - alpha) * maps.sum(values, ignored_as_negatives)[None]
    return maps.sum(values * (1 - alpha + (2 * alpha - 1) * maps.inside), ignored_as_negatives)[None]


def _average_focal(sums: torch.Tensor, labels: torch.Tensor, num_masks: torch.Tensor) -> torch.Tensor:
    return sums.sum() / (labels.shape[-2:].numel() * num_masks)


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
        logits: `(batch, classes, rows, columns)` float32 mask logits, resized to the labels.
        labels: `(batch, height, width)` int64 class ids.
        present: `(batch, classes)` bool, which classes occur in `labels`, see [`count_present_masks`].
        num_masks: Scalar normaliser.
        ignore_index: Label of pixels without a class.
        ignored_as_negatives: Official behaviour: ignored pixels enlarge the denominator.
    """
    term = partial(_sum_errors_and_hits, ignored_as_negatives=ignored_as_negatives)
    [sums] = sum_each_map([term], logits, labels, ignore_index)
    return _average_dice(sums, present, num_masks)


def _sum_errors_and_hits(maps: Maps, ignored_as_negatives: bool) -> torch.Tensor:
    if maps.inside is None:  # Classes that do not occur have no part in the loss.
        return maps.logits.new_zeros(2, *maps.logits.shape[:2])
    hits = (maps.inside * (1 - maps.errors)).sum((-2, -1))
    return torch.stack([maps.sum(maps.errors, ignored_as_negatives), hits])


def _average_dice(sums: torch.Tensor, present: torch.Tensor, num_masks: torch.Tensor) -> torch.Tensor:
    errors, intersection = sums
    # 1 - (2 I + 1) / (A + 1), where the area A of both is 2 I and the errors. In this form neither the value nor the
    # gradient is a small difference of large numbers.
    terms = 1 / (1 + (2 * intersection + 1) / errors.clamp(min=1e-12))
    return (terms * present).sum() / num_masks


def cross_entropy_loss(logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = 255) -> torch.Tensor:
    """
    Mean cross-entropy over labelled pixels, where classes exclude each other (ZegCLIP's ablation, section 3.5).

    Args:
        logits: `(batch, classes, rows, columns)` float32 mask logits, resized to the labels.
        labels: `(batch, height, width)` int64 class ids.
        ignore_index: Label of pixels that are left out.

    Returns:
        Scalar, 0 where no pixel has a label.
    """

    def sum_pixels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = resize(logits, labels)
        valid = labels != ignore_index
        ids = labels.where(valid, 0).unsqueeze(1)
        own = logits.gather(1, ids)
        # From the margin to the other classes: a softmax rounds the probability of a confident pixel to 1.
        others = logits.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
        return F.softplus(others - own).squeeze(1).where(valid, 0).sum()

    pictures_at_once = max(PIXELS_AT_ONCE // (logits.shape[1] * labels.shape[-2:].numel()), 1)
    if torch.compiler.is_compiling() or len(labels) <= pictures_at_once:
        total = sum_pixels(logits, labels)
    else:
        sums = [
            checkpoint(sum_pixels, *pictures, use_reentrant=False, preserve_rng_state=False)
            for pictures in zip(logits.split(pictures_at_once), labels.split(pictures_at_once), strict=True)
        ]
        total = torch.stack(sums).sum()
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
        logits: `(batch, classes, rows, columns)` float32 mask logits, resized to the labels.
        labels: `(batch, height, width)` int64 class ids.
        of_probabilities: Compare the sigmoid of the logits instead.
        ignore_index: Label of pixels without a class.
        ignored_as_negatives: Official behaviour: such pixels count as outside of every mask. Otherwise they are
            zero in both maps and left out of the mean.

    Returns:
        Scalar in [0, 2].
    """
    term = partial(_sum_dissimilarity, of_probabilities=of_probabilities, ignored_as_negatives=ignored_as_negatives)
    [sums] = sum_each_map([term], logits, labels, ignore_index)
    return _average_ssim(sums, labels, ignore_index, ignored_as_negatives)


def _sum_dissimilarity(maps: Maps, of_probabilities: bool, ignored_as_negatives: bool) -> torch.Tensor:
    reach = SSIM_WINDOW // 2
    c1, c2 = SSIM_CONSTANTS
    values = stable_sigmoid(maps.logits) if of_probabilities else maps.logits
    if not ignored_as_negatives:
        values = values * maps.valid
    num_maps = values.shape[1]
    # Computed where it is used: a copy from the CPU would be waited for.
    distances = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    gaussian = (-(distances**2) / (2 * SSIM_SIGMA**2)).exp()
    gaussian = (gaussian / gaussian.sum()).expand(num_maps, 1, 1, -1)

    def blur(values: torch.Tensor) -> torch.Tensor:
        # The window is a product of a row and a column. On CPUs, one group a class is far quicker than more pictures.
        values = F.conv2d(values, gaussian.mT, padding=(reach, 0), groups=num_maps)
        return F.conv2d(values, gaussian, padding=(0, reach), groups=num_maps)

    # Differences of squares do not survive the half precision that autocast gives to convolutions.
    with torch.autocast(values.device.type, enabled=False):
        mean_x = blur(values)
        # What rounding makes negative would bring a denominator close to zero, where logits are large and flat.
        variance_x = (blur(values * values) - mean_x * mean_x).clamp(min=0)
        if maps.inside is None:  # The mask's mean and variance are 0, and so is the covariance.
            similarity = c1 * c2 / ((mean_x**2 + c1) * (variance_x + c2))
        else:
            mean_y = blur(maps.inside)
            variance_y = mean_y - mean_y * mean_y  # a mask is its own square
            covariance = blur(values * maps.inside) - mean_x * mean_y
            similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
            similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return maps.sum((1 - similarity).clamp(min=0), ignored_as_negatives)[None]


def _average_ssim(
    sums: torch.Tensor, labels: torch.Tensor, ignore_index: int, ignored_as_negatives: bool
) -> torch.Tensor:
    pixels = count_pixels(labels, ignore_index, ignored_too=ignored_as_negatives).clamp(min=1)
    return sums.sum() / (pixels * sums.shape[-1])


@torch.no_grad()
def fill_pseudo_labels(
    logits: torch.Tensor, labels: torch.Tensor, class_ids: Sequence[int], unlabelled: int = -1
) -> torch.Tensor:
    """
    Label unlabelled pixels with the best-scoring of some classes, as the official self-training does.

    There is no threshold and no teacher: the scores are those of the forward pass that is being trained.

    Args:
        logits: `(batch, classes, rows, columns)` mask logits of all classes.
        labels: `(batch, height, width)` int64 ids; `unlabelled` marks pixels to fill.
        class_ids: Ids to choose from, the unseen classes.
        unlabelled: Label of the pixels to fill.

    Returns:
        Labels with these pixels filled; all others, ignored ones included, are unchanged.
    """
    ids = torch.tensor(list(class_ids), device=logits.device)
    # Of the sigmoid, as in the official code: where several are saturated, the first of them wins.
    best = ids[resize(logits.index_select(1, ids), labels).sigmoid().argmax(dim=1)]
    return torch.where(labels == unlabelled, best, labels)


__all__ = [
    "compute_loss",
    "count_labels",
    "cross_entropy_loss",
    "dice_loss",
    "fill_pseudo_labels",
    "focal_loss",
    "ssim_loss",
]
