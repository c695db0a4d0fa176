"""The losses against plain one-hot formulas, and their edge cases."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from zegclip.modeling import loss_maps, losses
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.loss_maps import count_present_masks
from zegclip.modeling.losses import (
    cross_entropy_loss,
    dice_loss,
    fill_pseudo_labels,
    focal_loss,
    ssim_loss,
)
from zegclip.modeling.model_error import ModelError


def example(seed=0):
    """Maps larger than the window of the structural similarity; picture 1 lacks class 3, both have ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 15, 13, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(4, (2, 5, 5), generator=generator)
    labels[1][labels[1] == 3] = 1
    labels = labels.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)[:, :, :13]
    labels[0, :4] = 255
    labels[1, 7:, 9:] = 255
    return logits, labels


def one_hot(labels, ignored_as_negatives=True):
    targets = F.one_hot(torch.where(labels == 255, 4, labels), 5)[..., :4].permute(0, 3, 1, 2).double()
    weight = torch.ones_like(targets) if ignored_as_negatives else (labels != 255).double()[:, None].expand_as(targets)
    return targets, weight


def focal_by_formula(maps, targets, weight):
    p = maps.sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = 0.25 * targets + 0.75 * (1 - targets)
    entropy = F.binary_cross_entropy_with_logits(maps, targets, reduction="none")
    return (weight * alpha_t * (1 - p_t) ** 2 * entropy).flatten(2).mean(-1).sum() / 7


def dice_by_formula(maps, targets, weight):
    p = maps.sigmoid() * weight
    dice = 1 - (2 * (p * targets).sum((2, 3)) + 1) / (p.sum((2, 3)) + targets.sum((2, 3)) + 1)
    return dice[targets.sum((2, 3)) > 0].sum() / 7


def cross_entropy_by_formula(maps, targets, weight):
    """The mean over labelled pixels of all pictures, not over pictures."""
    return ((maps.exp().sum(1).log() - (maps * targets).sum(1)) * targets.sum(1)).sum() / targets.sum()


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


FORMULAS = {
    "focal": focal_by_formula,
    "dice": dice_by_formula,
    "cross_entropy": cross_entropy_by_formula,
    "ssim": lambda maps, targets, weight: 1 - structural_similarity(maps * weight, targets)[weight > 0].mean(),
    "ssim of probabilities": lambda maps, targets, weight: FORMULAS["ssim"](maps.sigmoid(), targets, weight),
}
LOSSES = {
    "focal": lambda logits, labels, present, count, **rule: focal_loss(logits, labels, count, **rule),
    "dice": dice_loss,
    "cross_entropy": lambda logits, labels, present, count, ignored_as_negatives=True, **rule: cross_entropy_loss(
        logits, labels, **rule
    ),
    "ssim": lambda logits, labels, present, count, **rule: ssim_loss(logits, labels, **rule),
    "ssim of probabilities": lambda logits, labels, present, count, **rule: ssim_loss(
        logits, labels, of_probabilities=True, **rule
    ),
}


def value_and_gradient(name, logits, labels, count=None, **rule):
    """Of one of `LOSSES`, divided by `count`, by default the number of masks."""
    leaf = logits.detach().clone().requires_grad_()
    present, masks = count_present_masks(labels, logits.shape[1], rule.get("ignore_index", 255))
    loss = LOSSES[name](leaf, labels, present, masks if count is None else torch.tensor(count), **rule)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_formula(name, ignored_as_negatives):
    logits, labels = example()
    maps = logits.clone().requires_grad_()
    expected = FORMULAS[name](maps, *one_hot(labels, ignored_as_negatives))
    (expected_gradient,) = torch.autograd.grad(expected, maps)
    actual, gradient = value_and_gradient(name, logits, labels, 7.0, ignored_as_negatives=ignored_as_negatives)
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-12)
    if not ignored_as_negatives or name == "cross_entropy":  # ignored pixels are not even seen
        ignored = (labels == 255)[:, None].expand_as(logits)
        assert (gradient[ignored] == 0).all()
        other = value_and_gradient(
            name, torch.where(ignored, 7.0, logits), labels, 7.0, ignored_as_negatives=ignored_as_negatives
        )
        assert torch.equal(other[0], actual)


@pytest.mark.parametrize("pixels", [1, 2**22])
@pytest.mark.parametrize("classes", [4, 20])
@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_everything_is_ignored(monkeypatch, name, ignored_as_negatives, classes, pixels):
    monkeypatch.setattr(loss_maps, "PIXELS_AT_ONCE", pixels)
    logits, labels = example()
    logits = logits.repeat(1, classes // 4, 1, 1)
    labels[:] = 255
    loss, gradient = value_and_gradient(name, logits, labels, ignored_as_negatives=ignored_as_negatives)
    counts = ignored_as_negatives and name not in ("dice", "cross_entropy")
    assert gradient.isfinite().all()
    assert gradient.any() == counts
    assert (loss > 0) == counts or "ssim" in name
    assert 0 <= loss <= (2 * classes if name == "focal" else 2)


def test_present_masks():
    _, labels = example()
    present, count = count_present_masks(labels, 4, 255)
    assert present.tolist() == [[bool((picture == index).any()) for index in range(4)] for picture in labels]
    assert not present[1, 3]
    assert count == present.sum()
    assert count_present_masks(torch.full_like(labels, 255), 4, 255)[1] == 1


def test_pseudo_labels_are_unseen_and_only_where_asked():
    logits, labels = example()
    labels[0, 3] = -1
    filled = fill_pseudo_labels(logits, labels, class_ids=[1, 3])
    marked = labels == -1
    assert torch.equal(filled[~marked], labels[~marked])
    best = logits[:, [1, 3]].argmax(1) * 2 + 1
    assert torch.equal(filled[marked], best[marked])


@pytest.mark.parametrize("size", [(1, 1), (4, 30), (11, 11)])
def test_ssim_of_small_maps(size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, *size, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(1, *size, generator=generator) < 0.5, 0, 255)
    expected = 1 - structural_similarity(logits, (labels == 0)[:, None].double()).mean()
    torch.testing.assert_close(ssim_loss(logits, labels), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [20.0, 60.0, 100.0, 1e4])
def test_ssim_of_large_logits(scale):
    """Flat maps far from zero, where the difference of squares is smaller than what float32 rounds off."""
    logits, labels = example()
    logits = 0.007 * logits - scale
    exact_loss, exact_gradient = value_and_gradient("ssim", logits, labels)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss, gradient = value_and_gradient("ssim", logits.float(), labels)
        assert loss.dtype == torch.float32
        assert abs(loss - exact_loss) < 0.01
        assert gradient.abs().max() < 2 * exact_gradient.abs().max()


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_an_ignore_index_below_the_number_of_classes(name, ignored_as_negatives):
    """A data set of more than 255 classes has one of that number: no term takes the mark for it."""
    logits, labels = example()
    rule = {"ignored_as_negatives": ignored_as_negatives}
    other = value_and_gradient(name, logits, torch.where(labels == 255, 2, labels), ignore_index=2, **rule)
    same = value_and_gradient(name, logits, torch.where(labels == 2, 255, labels), ignore_index=255, **rule)
    torch.testing.assert_close(other, same, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_how_many_maps_are_summed_at_once(monkeypatch, name, ignored_as_negatives):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 20, 24, dtype=torch.float64)
    labels = torch.randint(7, (3, 20, 24))
    labels[0, :5] = 255
    results = []
    for pixels in (2**22, 1, 3 * 480, 4 * 480, 8 * 480, 15 * 480):
        for module in (losses, loss_maps):
            monkeypatch.setattr(module, "PIXELS_AT_ONCE", pixels)
        results.append(value_and_gradient(name, logits, labels, ignored_as_negatives=ignored_as_negatives))
        torch.testing.assert_close(results[-1], results[0], rtol=1e-12, atol=1e-18)  # where gradients cross 0


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_classes_that_do_not_occur_cost_less_and_count_as_all(monkeypatch, name, ignored_as_negatives):
    torch.manual_seed(0)
    logits = torch.randn(3, 20, 15, 13, dtype=torch.float64)
    labels = torch.tensor([[3, 17, 255], [0, 19, 8], [255, 255, 255]])[:, :, None, None].expand(3, 3, 5, 13)
    labels = labels.reshape(3, 15, 13)
    blurred = []
    convolve = F.conv2d

    def count(*args, groups, **kwargs):
        blurred.append(groups)
        return convolve(*args, groups=groups, **kwargs)

    monkeypatch.setattr(F, "conv2d", count)
    monkeypatch.setattr(loss_maps, "GROUPS_OF_CONVOLUTION", 20)
    expected = value_and_gradient(name, logits, labels, ignored_as_negatives=ignored_as_negatives)
    assert sum(blurred) == ("ssim" in name) * 4 * 2 * 20  # four blurs in two directions
    for groups, pixels in ((1, 2**22), (1, 1), (2, 3 * 195), (8, 3 * 195)):
        monkeypatch.setattr(loss_maps, "GROUPS_OF_CONVOLUTION", groups)
        for module in (losses, loss_maps):
            monkeypatch.setattr(module, "PIXELS_AT_ONCE", pixels)
        blurred.clear()
        actual = value_and_gradient(name, logits, labels, ignored_as_negatives=ignored_as_negatives)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-15)
        if (groups, pixels) == (1, 2**22):
            assert sum(blurred) == ("ssim" in name) * 2 * (4 * 3 + 2 * 17)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_loss_takes_other_labels(monkeypatch):
    logits = torch.randn(1, 20, 6, 6)
    few, many = torch.zeros(1, 12, 12, dtype=torch.long), torch.arange(144).view(1, 12, 12) % 20

    def loss(logits, labels):
        return focal_loss(logits, labels, torch.tensor(1))

    for pixels in (2**22, 1):
        monkeypatch.setattr(loss_maps, "PIXELS_AT_ONCE", pixels)
        traced = torch.jit.trace(loss, (logits, few))
        torch.testing.assert_close(traced(logits, many), loss(logits, many))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_reach_the_gradients(monkeypatch, name):
    for module in (losses, loss_maps):
        monkeypatch.setattr(module, "PIXELS_AT_ONCE", 1)
    logits, labels = torch.randn(2, 7, 5, 8) - 8, torch.randint(7, (2, 20, 24))
    expected = value_and_gradient(name, logits, labels)
    logits.requires_grad_()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            loss = LOSSES[name](logits, labels, *count_present_masks(labels, 7, 255))
        actual = loss.detach(), *torch.autograd.grad(loss, logits)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_logits_are_resized_in_each_chunk_as_at_once(monkeypatch, name, ignored_as_negatives):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 5, 8, dtype=torch.float64, requires_grad=True), torch.randint(7, (3, 20, 24))
    labels[0, :5] = 255
    resized = F.interpolate(logits, size=(20, 24), mode="bilinear")
    loss, gradient = value_and_gradient(name, resized.detach(), labels, ignored_as_negatives=ignored_as_negatives)
    [expected] = torch.autograd.grad(resized, logits, gradient)
    for pixels in (2**22, 1, 4 * 480, 15 * 480):
        for module in (losses, loss_maps):
            monkeypatch.setattr(module, "PIXELS_AT_ONCE", pixels)
        result = value_and_gradient(name, logits.detach(), labels, ignored_as_negatives=ignored_as_negatives)
        torch.testing.assert_close(result, (loss, expected))


def test_all_terms_together_are_those_of_each_loss(monkeypatch):
    weights = {"focal_weight": 1.0, "dice_weight": 1.0, "ssim_weight": 1.0, "cross_entropy_weight": 1.0}
    logits, labels = torch.randn(3, 7, 5, 8, dtype=torch.float64), torch.randint(7, (3, 20, 24))
    present, count = count_present_masks(labels, 7, 255)
    for pixels in (2**22, 4 * 480):
        for module in (losses, loss_maps):
            monkeypatch.setattr(module, "PIXELS_AT_ONCE", pixels)
        terms, _ = losses.compute_loss(ZegClipConfig(**weights), logits, labels)
        for name in ("focal", "dice", "ssim", "cross_entropy"):
            torch.testing.assert_close(terms[f"loss_{name}"], LOSSES[name](logits, labels, present, count))


def test_a_loss_may_first_be_computed_without_gradients():
    logits, labels = torch.randn(1, 2, 12, 12, requires_grad=True), torch.randint(2, (1, 12, 12))
    with torch.inference_mode():
        ssim_loss(logits, labels)
    ssim_loss(logits, labels).backward()


def confident_maps(scale):
    """Logits of about ±`scale` that are right in three of four pixels, and labels with some ignored ones."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (2, 16, 16), generator=generator)
    own = F.one_hot(labels, 4).permute(0, 3, 1, 2).bool()
    right = torch.rand(own.shape, generator=generator) < 0.75
    logits = torch.where(own == right, scale, -scale) + 0.5 * torch.randn(own.shape, generator=generator)
    labels[0, :2] = 255
    return logits, labels


@pytest.mark.parametrize("scale", [0.0, 6.0, 15.0, 40.0])
@pytest.mark.parametrize("name", ["focal", "dice", "cross_entropy"])
def test_float32_is_as_good_as_float64(name, scale):
    logits, labels = confident_maps(scale)
    exact, exact_gradient = value_and_gradient(name, logits.double(), labels)
    loss, gradient = value_and_gradient(name, logits, labels)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    rtol = 5e-6 if name == "cross_entropy" else 1e-6  # it takes differences of logits
    # Smaller gradients than 1e-36 are no numbers of float32.
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=rtol, atol=1e-36)


@pytest.mark.parametrize("scale", [1.0, 15.0, 30.0, 100.0])
def test_no_loss_is_negative(scale):
    """Also where maps equal their masks, so that the similarity of structure is 1."""
    for seed in range(10):
        _, labels = example(seed)
        own, _ = (part.float() for part in one_hot(labels))
        logits = scale * (2 * own - 1)
        values = [value_and_gradient(name, own if name == "ssim" else logits, labels)[0] for name in LOSSES]
        assert min(values) >= 0, values
        assert values[list(LOSSES).index("ssim")] < 1e-6


def test_dice_adds_up_large_masks_exactly():
    """One probability everywhere: added to a running sum, its rounding errors all have one sign."""
    logits = torch.full((1, 2, 512, 512), 1.0)
    logits[:, 1] = -1.0
    labels = torch.zeros(1, 512, 512, dtype=torch.long)
    present, count = count_present_masks(labels, 2, 255)
    exact = dice_loss(logits.double(), labels, present, count)
    torch.testing.assert_close(dice_loss(logits, labels, present, count).double(), exact, rtol=1e-6, atol=0)


def test_ssim_of_saturated_probabilities_has_gradients():
    _, labels = example()
    own, _ = one_hot(labels)
    logits = 16 * (2 * own - 1)
    logits[:, :, 4:6] *= -1
    exact, actual = (value_and_gradient("ssim of probabilities", maps, labels)[1] for maps in (logits, logits.float()))
    assert (actual - exact).norm() < 1e-3 * exact.norm()


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
    loss, gradient = value_and_gradient("cross_entropy", torch.randn(1, 1, 3, 3), torch.zeros(1, 3, 3).long())
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("name", ["focal", "dice", "ssim"])
def test_no_map_is_kept_for_the_backward_pass(monkeypatch, name, ignored_as_negatives):
    for module in (losses, loss_maps):
        monkeypatch.setattr(module, "PIXELS_AT_ONCE", 4 * 32 * 32)
    logits = torch.randn(2, 64, 4, 4, requires_grad=True)
    labels = torch.randint(64, (2, 32, 32))
    alive = weakref.WeakSet()

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        loss = LOSSES[name](
            logits, labels, *count_present_masks(labels, 64, 255), ignored_as_negatives=ignored_as_negatives
        )
    kept = {each.tensor.untyped_storage().data_ptr(): each.tensor for each in alive}
    assert sum(tensor.numel() for tensor in kept.values()) < 64 * labels.numel() / 4
    loss.backward()


def test_second_derivatives_are_refused(monkeypatch):
    monkeypatch.setattr(loss_maps, "PIXELS_AT_ONCE", 1)
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = focal_loss(logits, torch.randint(3, (2, 16, 16)), torch.tensor(1))
    with pytest.raises(ModelError, match="create_graph"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_all_losses_compile_into_one_graph_for_any_number_of_classes():
    def total(logits, labels):
        counts = count_present_masks(labels, logits.shape[1], 255)
        return sum(loss(logits, labels, *counts) for loss in LOSSES.values())

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
