"""The losses against plain one-hot formulas, and their edge cases."""

import pytest
import torch
import torch.nn.functional as F

from zegclip.modeling.loss_zegclip import count_present_masks, dice_loss, fill_pseudo_labels, focal_loss


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(4, (2, 6, 5), generator=generator)
    labels[0, :2] = 255
    labels[1][labels[1] == 3] = 1  # a class that one picture does not have
    return logits, labels


def one_hot(labels, ignored_as_negatives=True):
    targets = F.one_hot(torch.where(labels == 255, 4, labels), 5)[..., :4].permute(0, 3, 1, 2).double()
    weight = torch.ones_like(targets) if ignored_as_negatives else (labels != 255).double()[:, None].expand_as(targets)
    return targets, weight


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_focal_equals_its_one_hot_formula(ignored_as_negatives):
    logits, labels = example()
    targets, weight = one_hot(labels, ignored_as_negatives)
    p = logits.sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = 0.25 * targets + 0.75 * (1 - targets)
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = (weight * alpha_t * (1 - p_t) ** 2 * bce).flatten(2).mean(-1).sum() / 7
    actual = focal_loss(logits, labels, torch.tensor(7.0), ignored_as_negatives=ignored_as_negatives)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_dice_equals_its_one_hot_formula(ignored_as_negatives):
    logits, labels = example()
    targets, weight = one_hot(labels, ignored_as_negatives)
    p = logits.sigmoid() * weight
    dice = 1 - (2 * (p * targets).sum((2, 3)) + 1) / (p.sum((2, 3)) + targets.sum((2, 3)) + 1)
    present = targets.sum((2, 3)) > 0
    expected = dice[present].sum() / 7
    actual = dice_loss(logits, labels, present, torch.tensor(7.0), ignored_as_negatives=ignored_as_negatives)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def test_present_masks():
    _, labels = example()
    present, count = count_present_masks(labels, 4, 255)
    assert present.tolist() == [[bool((picture == index).any()) for index in range(4)] for picture in labels]
    assert not present[1, 3]
    assert count == present.sum()


def test_a_batch_without_any_class_has_a_normaliser_of_one():
    labels = torch.full((2, 6, 5), 255)
    present, count = count_present_masks(labels, 4, 255)
    assert count == 1
    logits = example()[0]
    assert dice_loss(logits, labels, present, count) == 0
    assert focal_loss(logits, labels, count) > 0
    assert focal_loss(logits, labels, count, ignored_as_negatives=False) == 0


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[[-1e4, 1e4]], [[1e4, -1e4]]]], requires_grad=True)
    labels = torch.tensor([[[0, 0]]])
    present, count = count_present_masks(labels, 2, 255)
    loss = focal_loss(logits, labels, count) + dice_loss(logits, labels, present, count)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_pseudo_labels_are_unseen_and_only_where_asked():
    logits, labels = example()
    labels[0, 3] = -1
    filled = fill_pseudo_labels(logits, labels, class_ids=[1, 3])
    marked = labels == -1
    assert torch.equal(filled[~marked], labels[~marked])
    best = logits[:, [1, 3]].argmax(1) * 2 + 1
    assert torch.equal(filled[marked], best[marked])
