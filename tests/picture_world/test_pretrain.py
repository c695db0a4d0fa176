"""Windows with captions, the tiny CLIP, its losses, evaluation and the pretraining run."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from zegclip.picture_world import evaluation, tiny_clip
from zegclip.picture_world import pretrain as pretrain_module
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.crops import captioned_windows, draw_scenes
from zegclip.picture_world.drawing import draw_scene
from zegclip.picture_world.pretrain import PretrainArguments, pretrain
from zegclip.picture_world.tiny_clip import CaptionTraining, build_model, normalise, picture_features
from zegclip.picture_world.tokenizer import build_tokenizer
from zegclip.processing.input_error import InputError

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(range(30), progress=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(build_tokenizer(), patch_size=12, width=32, layers=2)


def test_windows_are_cut_from_their_scenes(scenes):
    batch = next(captioned_windows(scenes, 48, 6, np.random.default_rng(0)))
    assert batch.pictures.shape == (6, 48, 48, 3)
    for picture in batch.pictures.numpy():
        windows = np.lib.stride_tricks.sliding_window_view(scenes.pictures, (48, 48), axis=(1, 2))
        corner = windows[:, :, :, :, 0, 0]
        mirrored = windows[:, :, :, :, 0, -1]
        assert (corner == picture[0, 0]).all(-1).any() or (mirrored == picture[0, 0]).all(-1).any()


def test_a_picture_matches_captions_of_what_it_shows(scenes):
    batch = next(captioned_windows(scenes, 48, 40, np.random.default_rng(1)))
    assert batch.matches.shape == (40, 40)
    assert batch.matches.diagonal().all()
    assert 0 < batch.matches.float().mean() < 0.5
    same = [i for i, text in enumerate(batch.captions) if text == batch.captions[0]]
    assert (batch.matches[:, same] == batch.matches[:, :1]).all()


def test_a_caption_of_two_things_needs_both(scenes):
    batch = next(captioned_windows(scenes, 48, 400, np.random.default_rng(1)))
    named = [frozenset(text.replace("-", " ").split()) & set(CLASS_NAMES) for text in batch.captions]
    column = {next(iter(classes)): index for index, classes in enumerate(named) if len(classes) == 1}
    pairs = [index for index, classes in enumerate(named) if len(classes) == 2 and classes <= column.keys()]
    assert len(pairs) > 10
    for pair in pairs:
        first, second = (batch.matches[:, column[name]] for name in named[pair])
        assert torch.equal(batch.matches[:, pair], first & second)


def test_close_ups_show_more_objects(scenes):
    def objects(share: float) -> int:
        windows = captioned_windows(scenes, 48, 200, np.random.default_rng(2), close_ups=share)
        return sum(any(name in text.split() for name in CLASS_NAMES[:24]) for text in next(windows).captions)

    assert objects(1.0) > objects(0.0)


def test_loss_is_small_only_for_patches_that_name_their_picture(model, monkeypatch):
    # One patch of each picture matches its caption, the others none: only the loss on patches can be small.
    training = CaptionTraining(model)
    texts = torch.eye(4, 128)
    patches = torch.nn.functional.normalize(torch.ones(4, 9, 128), dim=-1).clone()
    patches[range(4), 5] = texts
    pictures = torch.nn.functional.normalize(torch.ones(4, 128), dim=-1)
    training.model.logit_scale.data.fill_(np.log(50))
    monkeypatch.setattr(tiny_clip, "picture_features", lambda *_: (pictures, patches))
    monkeypatch.setattr(tiny_clip, "text_features", lambda *_: texts)
    whole, dense = training(torch.empty(0), {}, torch.eye(4, dtype=torch.bool))
    assert whole.item() == pytest.approx(np.log(4), abs=1e-4)
    assert dense.item() < 0.05


def test_patch_features_are_in_reading_order(model):
    # As long as no layer mixes patches, only the one under a bright spot may change.
    for layer in model.vision_model.encoder.layers:
        for weight in (layer.self_attn.out_proj, layer.mlp.fc2):
            torch.nn.init.zeros_(weight.weight)
            torch.nn.init.zeros_(weight.bias)
    pictures = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    pictures[1, 12:24, 36:48] = 255
    _, patches = picture_features(model.eval(), normalise(pictures))
    changed = (patches[0] - patches[1]).abs().amax(dim=-1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 3]


def test_positions_are_all_different():
    table = tiny_clip.sine_cosine_positions(8, 160)
    assert table.shape == (64, 160)
    assert (torch.cdist(table, table) + torch.eye(64)).min() > 0.1


def test_perfect_features_name_every_pixel(monkeypatch):
    # Patches that carry the colour of their place must reproduce a picture of colours, in overlapping windows too.
    colours = torch.eye(3)

    def read_colours(_, pixel_values):
        blocks = torch.nn.functional.avg_pool2d(pixel_values, 6).flatten(2).transpose(1, 2)
        return blocks.mean(dim=1), blocks

    monkeypatch.setattr(evaluation, "picture_features", read_colours)
    monkeypatch.setattr(evaluation, "normalise", lambda pictures: pictures.permute(0, 3, 1, 2).float())
    truth = torch.zeros(60, 72, dtype=torch.long)
    truth[:30, 36:] = 1
    truth[30:] = 2
    answer = evaluation.name_pixels(SimpleNamespace(device="cpu"), colours, (255 * colours[truth]).byte())
    assert (answer == truth).float().mean() > 0.93


def test_untrained_model_is_measured_from_its_masks(model):
    overlap = evaluation.name_scenes(model.eval(), build_tokenizer(), [draw_scene(0), draw_scene(1)])
    present = set(np.unique([np.asarray(draw_scene(seed).mask) for seed in (0, 1)]))
    assert overlap.shape == (32,)
    assert present <= set(torch.isfinite(overlap).nonzero().flatten().tolist())
    assert overlap.nanmean() < 0.3


SIZES = {"batch_size": 8, "scenes": 8, "patch_size": 12, "width": 32, "layers": 1}
SETTINGS = SIZES | {"precision": "no", "eval_scenes": 1}


@pytest.fixture
def few_close_ups(monkeypatch):
    monkeypatch.setattr(pretrain_module, "_CLOSE_UPS", 24)


@pytest.mark.usefixtures("few_close_ups")
def test_pretraining_learns_and_saves(tmp_path, caplog):
    settings = SETTINGS | {"batch_size": 24, "scenes": 40, "eval_every": 10, "eval_scenes": 2, "learning_rate": 3e-3}
    with caplog.at_level(logging.INFO, logger="zegclip.picture_world.pretrain"):
        model = pretrain(PretrainArguments(output=str(tmp_path / "first"), steps=40, **settings))
    figures = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    assert figures[-1]["step"] == 40
    assert figures[-1]["loss_whole"] + figures[-1]["loss_dense"] < figures[0]["loss_whole"] + figures[0]["loss_dense"]

    loaded = CLIPModel.from_pretrained(tmp_path / "first")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "first")(["a photo of a car"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.get_text_features(**tokens).pooler_output, model.get_text_features(**tokens).pooler_output
        )
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.usefixtures("few_close_ups")
def test_seed_decides_the_weights(tmp_path):
    def weights(name: str, seed: int) -> torch.Tensor:
        model = pretrain(PretrainArguments(output=str(tmp_path / name), seed=seed, steps=2, **SETTINGS))
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    first, again, other = weights("first", 1), weights("again", 1), weights("other", 2)
    # Sums of floats may differ in their last bit from run to run, on the same machine too.
    assert (first - again).norm() < 1e-3 * first.norm()
    assert (first - other).norm() > 0.1 * first.norm()


def test_quick_never_makes_a_run_longer():
    assert PretrainArguments(output="x", steps=5, quick=True).steps == 5
    assert PretrainArguments(output="x", quick=True).steps < PretrainArguments(output="x").steps


@pytest.mark.parametrize("sizes", [{"patch_size": 7}, {"patch_size": 0}, {"width": 100}])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(InputError, match=next(iter(sizes))):
        PretrainArguments(output="x", **sizes)
