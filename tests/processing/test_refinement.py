import pytest
import torch
import torch.nn.functional as F
from tiny_models import golden_files, read_dense_golden

from zegclip.processing.refinement import REACH, affinity, refine


@pytest.mark.parametrize("path", golden_files("dense_*.safetensors"), ids=lambda path: path.stem)
def test_it_equals_the_official_code(path):
    _, tensors = read_dense_golden(path)
    logits, expected, picture = (tensors[f"slide.{key}"] for key in ("logits_resized", "logits_pamr", "pixel_values"))
    picture = F.interpolate(picture, logits.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(refine(logits[0], picture[0]), expected[0], atol=1e-5, rtol=0)


def test_tiles_change_nothing():
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(3, REACH + 90, 60, generator=generator)
    scores = torch.randn(2, *picture.shape[1:], generator=generator)
    torch.testing.assert_close(refine(scores, picture, tile_side=50), refine(scores, picture), atol=1e-5, rtol=0)


def test_what_a_pixel_takes_sums_to_one_and_keeps_to_its_colour():
    picture = torch.zeros(3, 60, 80)
    picture[:, :, 40:] = 1
    weights = affinity(picture)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(60, 80))
    scores = torch.zeros(1, 60, 80)
    scores[:, :, 44:] = 1  # four pixels beside the outline
    refined = refine(scores, picture)
    assert (refined[0, :, 40:] > 0.5).float().mean() > (scores[0, :, 40:] > 0.5).float().mean()
    assert refined[0, :, :40].max() < 0.1


def test_constant_scores_stay_as_they_are():
    refined = refine(torch.full((1, 40, 30), 0.25), torch.randn(3, 40, 30))
    torch.testing.assert_close(refined, torch.full((1, 40, 30), 0.25))
