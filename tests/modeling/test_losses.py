"""The losses against plain one-hot formulas, and their edge cases."""

import math

import pytest
import torch
import torch.nn.functional as F

from zegclip.modeling import losses
from zegclip.modeling.losses import (
    count_present_masks,
    cross_entropy_loss,
    dice_loss,
    fill_pseudo_labels,
    focal_loss,
    ssim_loss,
)


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


def test_cross_entropy_equals_its_formula():
    logits, labels = example()
    labelled = labels != 255
    assert 0 < labelled.sum() < labels.numel()
    gradients = []
    for compute in ("formula", "ours"):
        maps = logits.clone().requires_grad_()
        if compute == "formula":
            terms = [
                maps[picture, :, row, column].exp().sum().log()
                - maps[picture, labels[picture, row, column], row, column]
                for picture, row, column in labelled.nonzero().tolist()
            ]
            expected = torch.stack(terms).mean()  # over pixels of all pictures, not over pictures
            gradients.append(torch.autograd.grad(expected, maps)[0])
        else:
            actual = cross_entropy_loss(maps, labels)
            gradients.append(torch.autograd.grad(actual, maps)[0])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)
    assert not gradients[1][~labelled[:, None].expand_as(logits)].any()


def test_cross_entropy_where_everything_is_ignored():
    logits, labels = example()
    logits.requires_grad_()
    loss = cross_entropy_loss(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_classes_exclude_each_other_in_the_cross_entropy_alone():
    """A second class at the same place costs in the cross-entropy; raising all logits costs nothing."""
    logits, labels = example()
    labelled = (labels != 255)[:, None]
    torch.testing.assert_close(cross_entropy_loss(logits + 5, labels), cross_entropy_loss(logits, labels))
    own = F.one_hot(labels.where(labels != 255, 0), 4).permute(0, 3, 1, 2).bool() & labelled
    certain = torch.where(own, 20.0, -20.0).double()
    assert cross_entropy_loss(certain, labels) < 1e-9
    assert cross_entropy_loss(torch.full_like(certain, 20.0), labels) == pytest.approx(math.log(4))


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
    loss = loss + cross_entropy_loss(logits, labels)
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


def larger_example():
    """As `example`, larger than the window of the structural similarity."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 15, 13, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (2, 5, 5), generator=generator)
    labels = labels.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)[:, :, :13]
    labels[0, :4] = 255
    labels[1, 7:, 9:] = 255
    return logits, labels


def structural_similarity(maps, masks):
    """Of Wang et al. 2004, with the full window of 11 x 11, one map at a time."""
    offsets = torch.arange(-5, 6).double()
    window = (-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2)).exp()
    window = (window / window.sum()).view(1, 1, 11, 11)
    x, y = maps.flatten(0, 1).unsqueeze(1), masks.flatten(0, 1).unsqueeze(1)
    mu_x, mu_y, xx, yy, xy = (F.conv2d(values, window, padding=5) for values in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return similarity.view_as(maps)


@pytest.mark.parametrize("of_probabilities", [False, True])
@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_ssim_equals_its_one_hot_formula(of_probabilities, ignored_as_negatives):
    logits, labels = larger_example()
    targets, weight = one_hot(labels, ignored_as_negatives)
    gradients = []
    maps = logits.clone().requires_grad_()
    similarity = structural_similarity((maps.sigmoid() if of_probabilities else maps) * weight, targets)
    expected = 1 - similarity[weight > 0].mean()
    gradients.append(torch.autograd.grad(expected, maps)[0])
    maps = logits.clone().requires_grad_()
    actual = ssim_loss(maps, labels, of_probabilities=of_probabilities, ignored_as_negatives=ignored_as_negatives)
    gradients.append(torch.autograd.grad(actual, maps)[0])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (4, 30), (11, 11)])
def test_ssim_of_small_maps(size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, *size, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(1, *size, generator=generator) < 0.5, 0, 255)
    expected = 1 - structural_similarity(logits, (labels == 0)[:, None].double()).mean()
    torch.testing.assert_close(ssim_loss(logits, labels), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("of_probabilities", [False, True])
def test_ssim_of_equal_maps_is_zero(of_probabilities):
    _, labels = larger_example()
    targets, _ = one_hot(labels)
    logits = 80 * (targets - 0.5) if of_probabilities else targets
    assert ssim_loss(logits, labels, of_probabilities=of_probabilities).abs() < 1e-9


@pytest.mark.parametrize("of_probabilities", [False, True])
def test_ssim_without_negatives_does_not_see_ignored_pixels(of_probabilities):
    logits, labels = larger_example()
    options = {"of_probabilities": of_probabilities, "ignored_as_negatives": False}
    ignored = (labels == 255)[:, None].expand_as(logits)
    logits.requires_grad_()
    loss = ssim_loss(logits, labels, **options)
    loss.backward()
    assert (logits.grad[ignored] == 0).all()
    assert logits.grad[~ignored].any()
    with torch.no_grad():
        assert torch.equal(ssim_loss(torch.where(ignored, 7.0, logits), labels, **options), loss)
        assert not torch.equal(ssim_loss(torch.where(ignored, 7.0, logits), labels), ssim_loss(logits, labels))


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_ssim_where_everything_is_ignored(ignored_as_negatives):
    logits, labels = larger_example()
    logits.requires_grad_()
    loss = ssim_loss(logits, torch.full_like(labels, 255), ignored_as_negatives=ignored_as_negatives)
    loss.backward()
    assert 0 <= loss <= 2
    assert logits.grad.isfinite().all()
    assert logits.grad.any() == ignored_as_negatives


def test_ssim_is_float32_under_autocast():
    logits, labels = larger_example()
    logits = logits.float()
    expected = ssim_loss(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = ssim_loss(logits, labels)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("scale", [20.0, 60.0, 100.0, 1e4])
def test_ssim_of_large_logits(scale):
    """Flat maps far from zero, where the difference of squares is smaller than what float32 rounds off."""
    _, labels = larger_example()
    noise = torch.randn(2, 4, 15, 13, generator=torch.Generator().manual_seed(2))
    results = []
    for dtype in (torch.float64, torch.float32):
        logits = (0.02 * noise - scale).to(dtype).requires_grad_()
        loss = ssim_loss(logits, labels)
        loss.backward()
        results.append((loss.item(), logits.grad.abs().max().item()))
    (exact_loss, exact_gradient), (loss, gradient) = results
    assert abs(loss - exact_loss) < 0.01
    assert gradient < 2 * exact_gradient


def test_an_ignore_index_below_the_number_of_classes():
    """A data set of more than 255 classes has one of that number: no term takes the mark for it."""
    logits, labels = larger_example()
    same = torch.where(labels == 2, 255, labels)
    for ignored_as_negatives in (True, False):
        values = []
        for ids, ignore_index in ((torch.where(labels == 255, 2, labels), 2), (same, 255)):
            present, count = count_present_masks(ids, 4, ignore_index)
            rule = {"ignore_index": ignore_index, "ignored_as_negatives": ignored_as_negatives}
            values.append(
                torch.stack(
                    [
                        focal_loss(logits, ids, count, **rule),
                        dice_loss(logits, ids, present, count, **rule),
                        ssim_loss(logits, ids, **rule),
                        cross_entropy_loss(logits, ids, ignore_index=ignore_index),
                    ]
                )
            )
        torch.testing.assert_close(*values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_losses_do_not_depend_on_how_many_maps_are_summed_at_once(monkeypatch, ignored_as_negatives):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 20, 24, dtype=torch.float64)
    labels = torch.randint(7, (3, 20, 24))
    labels[0, :5] = 255

    def loss_and_gradient(pixels):
        monkeypatch.setattr(losses, "PIXELS_AT_ONCE", pixels)
        leaf = logits.clone().requires_grad_()
        rule = {"ignored_as_negatives": ignored_as_negatives}
        present, count = count_present_masks(labels, 7, 255)
        loss = ssim_loss(leaf, labels, **rule) + focal_loss(leaf, labels, count, **rule)
        loss = loss + dice_loss(leaf, labels, present, count, **rule)
        loss.backward()
        return loss.detach(), leaf.grad

    expected = loss_and_gradient(2**22)
    for pixels in (1, 3 * 480, 4 * 480, 8 * 480):
        torch.testing.assert_close(loss_and_gradient(pixels), expected, rtol=1e-12, atol=0)


def confident_maps(scale, size=16, dtype=torch.float32):
    """Logits of about ±`scale` that are right in three of four pixels, and labels with some ignored ones."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (2, size, size), generator=generator)
    own = F.one_hot(labels, 4).permute(0, 3, 1, 2).bool()
    right = torch.rand(own.shape, generator=generator) < 0.75
    logits = torch.where(own == right, scale, -scale) + 0.5 * torch.randn(own.shape, generator=generator)
    labels[0, :2] = 255
    return logits, labels, own & (labels != 255).unsqueeze(1)


LOSSES = {
    "focal": lambda logits, labels, present, count: focal_loss(logits, labels, count),
    "dice": dice_loss,
    "cross_entropy": lambda logits, labels, present, count: cross_entropy_loss(logits, labels),
}


@pytest.mark.parametrize("scale", [0.0, 6.0, 15.0, 40.0])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_as_good_as_float64(name, scale):
    logits, labels, own = confident_maps(scale)
    present, count = count_present_masks(labels, 4, 255)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.detach().to(dtype).requires_grad_()
        loss = LOSSES[name](leaf, labels, present, count)
        loss.backward()
        results.append((loss.detach().double(), leaf.grad.double()))
    (loss, gradient), (exact_loss, exact_gradient) = results
    torch.testing.assert_close(loss, exact_loss, rtol=1e-6, atol=0)
    rtol = 5e-6 if name == "cross_entropy" else 1e-6  # it takes differences of logits
    # Smaller gradients than 1e-36 are no numbers of float32.
    torch.testing.assert_close(gradient[own], exact_gradient[own], rtol=rtol, atol=1e-36)
    torch.testing.assert_close(gradient, exact_gradient, rtol=rtol, atol=1e-36)


def test_focal_does_not_cancel():
    logits = torch.full((1, 2, 8, 8), -15.0)
    logits[:, 0] = 15.0
    loss = focal_loss(logits, torch.zeros(1, 8, 8, dtype=torch.long), torch.tensor(1.0))
    assert loss.item() == pytest.approx(2.8625e-20, rel=1e-4)  # 64 pixels of 0.25 e^-45 and as many of 0.75 e^-45


@pytest.mark.parametrize("scale", [1.0, 15.0, 30.0, 100.0])
def test_no_loss_is_negative(scale):
    for seed in range(10):
        labels = torch.randint(5, (2, 5, 5), generator=torch.Generator().manual_seed(seed))
        labels = labels.repeat_interleave(7, dim=1).repeat_interleave(7, dim=2)
        own = F.one_hot(labels, 5).permute(0, 3, 1, 2).float()
        labels = labels.where(labels < 4, 255)
        logits = scale * (2 * own[:, :4] - 1)
        present, count = count_present_masks(labels, 4, 255)
        values = [loss(logits, labels, present, count) for loss in LOSSES.values()]
        values += [ssim_loss(logits, labels, of_probabilities=True), ssim_loss(own[:, :4], labels)]
        assert min(values) >= 0, values


def test_dice_adds_up_large_masks_exactly():
    """One probability everywhere: added to a running sum, its rounding errors all have one sign."""
    logits = torch.full((1, 2, 512, 512), 1.0)
    logits[:, 1] = -1.0
    labels = torch.zeros(1, 512, 512, dtype=torch.long)
    present, count = count_present_masks(labels, 2, 255)
    exact = dice_loss(logits.double(), labels, present, count)
    torch.testing.assert_close(dice_loss(logits, labels, present, count).double(), exact, rtol=1e-6, atol=0)


def test_ssim_of_saturated_probabilities_has_gradients():
    _, labels = larger_example()
    own, _ = one_hot(labels)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        logits = (16 * (2 * own - 1)).to(dtype)
        logits[:, :, 4:6] *= -1
        logits.requires_grad_()
        ssim_loss(logits, labels, of_probabilities=True).backward()
        gradients.append(logits.grad.double())
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


@pytest.mark.parametrize("gamma", [0, 0.01, 0.5, 1.0, 1.5, 5])
def test_gradients_of_any_focusing_exponent_are_finite(gamma):
    values = torch.tensor([0.0, 20.0, 79.0, 81.0, 90.0, 104.0, 1e4])
    logits = torch.cat([values, -values]).view(1, 1, 1, -1).repeat(1, 2, 1, 1).requires_grad_()
    labels = torch.zeros(1, 1, 14, dtype=torch.long)
    loss = focal_loss(logits, labels, torch.tensor(1.0), gamma=gamma)
    loss.backward()
    exact = logits.detach().double()[..., :-1].requires_grad_()
    pixels = exact.sigmoid()[:, 1] ** gamma * 0.75 * F.softplus(exact[:, 1])
    (expected,) = torch.autograd.grad(pixels.sum() / 14, exact)
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad[:, 1, :, :7].double(), expected[:, 1, :, :7], rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(logits.grad[:, 1, :, 7:9].double(), expected[:, 1, :, 7:9], rtol=1e-6, atol=1e-30)


def test_cross_entropy_of_a_single_class():
    logits = torch.randn(1, 1, 3, 3, requires_grad=True)
    loss = cross_entropy_loss(logits, torch.zeros(1, 3, 3, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_no_map_is_kept_for_the_backward_pass(monkeypatch, ignored_as_negatives):
    monkeypatch.setattr(losses, "PIXELS_AT_ONCE", 4 * 16 * 16)
    logits = torch.randn(2, 64, 16, 16, requires_grad=True)
    labels = torch.randint(64, (2, 16, 16))
    present, count = count_present_masks(labels, 64, 255)
    rule = {"ignored_as_negatives": ignored_as_negatives}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = focal_loss(logits, labels, count, **rule) + dice_loss(logits, labels, present, count, **rule)
        loss = loss + ssim_loss(logits, labels, **rule)
    for given in (logits, labels):
        kept.pop(given.untyped_storage().data_ptr(), None)
    assert sum(tensor.numel() for tensor in kept.values()) < logits.numel() / 4
    loss.backward()


def test_all_losses_compile_into_one_graph_for_any_number_of_classes():
    def total(logits, labels):
        present, count = count_present_masks(labels, logits.shape[1], 255)
        terms = [loss(logits, labels, present, count) for loss in LOSSES.values()]
        return sum(terms) + ssim_loss(logits, labels)

    torch._dynamo.reset()
    compiled = torch.compile(total, backend="eager", dynamic=True, fullgraph=True)
    for classes in (4, 6, 9):
        logits = torch.randn(2, classes, 16, 12, dtype=torch.float64, requires_grad=True)
        labels = torch.randint(4, (2, 16, 12))
        labels[0, :3] = 255
        with torch._dynamo.config.patch(error_on_recompile=classes != 4):
            actual = compiled(logits, labels)
        torch.testing.assert_close(actual, total(logits, labels))
        assert torch.autograd.grad(actual, logits)[0].any()
