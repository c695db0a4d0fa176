"""Windows with captions, the tiny CLIP, its loss, evaluation and the pretraining run."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from zegclip.picture_world import crops, tiny_clip
from zegclip.picture_world import pretrain as pretrain_module
from zegclip.picture_world.classes import CLASS_NAMES, OBJECT_NAMES, UNSEEN_TEST, class_ids
from zegclip.picture_world.crops import captioned_windows, draw_scenes
from zegclip.picture_world.evaluation import report
from zegclip.picture_world.pretrain import PretrainArguments, pretrain
from zegclip.picture_world.tiny_clip import CaptionTraining, build_model
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


def names_of(text):
    return frozenset(text.replace("-", " ").split()) & set(CLASS_NAMES)


def test_a_picture_matches_captions_whose_classes_its_own_caption_names(scenes):
    batch = next(captioned_windows(scenes, 48, 100, np.random.default_rng(1), captions_per_picture=1))
    named = [names_of(text) for text in batch.captions]
    assert any(len(classes) == 2 for classes in named)
    expected = torch.tensor([[caption <= own for caption in named] for own in named])
    assert torch.equal(batch.matches, expected)
    assert 0 < batch.matches.float().mean() < 0.5


def test_all_captions_of_a_picture_say_what_it_shows():
    """Two objects side by side: of five captions one is used, but the others name the other object."""
    drawn = draw_scenes(range(1), progress=False)
    scenes = crops.DrawnScenes(drawn.pictures, [[(0, "red", 48, 40), (1, "green", 48, 56)]], [[(33, 0, 96)]])
    shares = {}
    for count in (1, 5):
        batch = next(captioned_windows(scenes, 48, 60, np.random.default_rng(0), captions_per_picture=count))
        named = [names_of(text) for text in batch.captions]
        own = torch.tensor([[caption <= other for caption in named] for other in named])
        assert batch.matches[own].all()
        shares[count] = batch.matches.float().mean()
    assert shares[1] < 0.6 < 0.7 < shares[5]


def test_captions_name_what_was_drawn_in_the_window():
    # One scene with an object in each corner: a window has at most one of their centres.
    drawn = draw_scenes(range(1), progress=False)
    things = [(0, "red", 12, 12), (1, "green", 84, 84)]
    scenes = crops.DrawnScenes(drawn.pictures, [things], [[(33, 0, 40), (34, 40, 96)]])
    found = set()
    for batch, _ in zip(captioned_windows(scenes, 48, 50, np.random.default_rng(0)), range(4)):
        for text, picture in zip(batch.captions, batch.pictures.numpy(), strict=True):
            rows = np.lib.stride_tricks.sliding_window_view(drawn.pictures[0], (48, 48), axis=(0, 1))
            views = np.stack([rows, rows[..., ::-1]]).transpose(0, 1, 2, 4, 5, 3)
            _, top, left = np.argwhere((views == picture).all(axis=(3, 4, 5)))[0]
            classes = names_of(text)
            assert ("house" in classes) <= (top <= 8 and left <= 8)
            assert ("tree" in classes) <= (top >= 41 and left >= 41)
            assert ("grass" in classes) <= (top <= 28)
            assert ("water" in classes) <= (top <= 48)
            found |= classes
    assert found == {"house", "tree", "grass", "water"}


def test_pretraining_reads_no_mask(monkeypatch):
    """With every mask replaced by another, captions, windows and matches stay the same."""
    before = draw_scenes(range(6), progress=False)
    original = crops.draw_scene

    def with_another_mask(*arguments):
        scene = original(*arguments)
        scene.mask.paste(7, (0, 0, *scene.mask.size))
        return scene

    monkeypatch.setattr(crops, "draw_scene", with_another_mask)
    after = draw_scenes(range(6), progress=False)
    first, second = (next(captioned_windows(scenes, 48, 30, np.random.default_rng(3))) for scenes in (before, after))
    assert first.captions == second.captions
    assert torch.equal(first.pictures, second.pictures)
    assert torch.equal(first.matches, second.matches)


def test_withheld_classes_are_shown_but_never_named(scenes):
    windows = captioned_windows(scenes, 48, 300, np.random.default_rng(2), withheld=class_ids(UNSEEN_TEST))
    assert not set(UNSEEN_TEST) & set().union(*(names_of(text) for text in next(windows).captions))
    assert any(set(UNSEEN_TEST) & names_of(text) for text in next(
        captioned_windows(scenes, 48, 300, np.random.default_rng(2))
    ).captions)  # fmt: skip


def test_close_ups_show_more_objects(scenes):
    def objects(share: float) -> int:
        windows = captioned_windows(scenes, 48, 200, np.random.default_rng(2), close_ups=share)
        return sum(any(name in text.split() for name in OBJECT_NAMES) for text in next(windows).captions)

    assert objects(1.0) > objects(0.0)


def test_the_loss_is_cross_entropy_of_all_matches_in_both_directions(model, monkeypatch):
    training = CaptionTraining(model)
    texts = torch.eye(4, 128)
    pictures = torch.nn.functional.normalize(texts + 0.3, dim=-1)
    scale = model.logit_scale.exp().item()
    assert scale == pytest.approx(50)
    monkeypatch.setattr(tiny_clip, "picture_features", lambda *_: pictures)
    monkeypatch.setattr(tiny_clip, "text_features", lambda *_: texts)
    logits = scale * pictures @ texts.T
    alone = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    alone = (alone + torch.nn.functional.cross_entropy(logits.T, torch.arange(4))) / 2
    assert training(torch.empty(0), {}, torch.eye(4, dtype=torch.bool)).item() == pytest.approx(alone.item(), rel=1e-5)
    # Every caption fits every picture.
    log_p = (logits.log_softmax(dim=1).mean() + logits.T.log_softmax(dim=1).mean()) / 2
    everywhere = training(torch.empty(0), {}, torch.ones(4, 4, dtype=torch.bool))
    assert everywhere.item() == pytest.approx(-log_p.item(), rel=1e-5)


def test_positions_are_all_different():
    table = tiny_clip.sine_cosine_positions(8, 160)
    assert table.shape == (64, 160)
    assert (torch.cdist(table, table) + torch.eye(64)).min() > 0.1


def test_the_report_is_of_each_part_of_the_split(model):
    figures = report(model, build_tokenizer(), range(66))
    assert {name for name in figures if "top1" in name} == {
        "object_top1_seen", "object_top1_unseen_tuning", "object_top1_unseen_test"
    }  # fmt: skip
    assert all(0 <= value <= 100 for name, value in figures.items() if "top1" in name)
    assert -1 <= figures["cosine_of_names"] <= 1
    assert model.training


SIZES = {"batch_size": 8, "scenes": 8, "patch_size": 12, "width": 32, "layers": 1}
SETTINGS = SIZES | {"precision": "no"}


@pytest.fixture
def few_close_ups(monkeypatch):
    monkeypatch.setattr(pretrain_module, "_CLOSE_UPS", 33)


@pytest.mark.usefixtures("few_close_ups")
def test_pretraining_learns_and_saves(tmp_path, caplog):
    settings = SETTINGS | {"batch_size": 24, "scenes": 40, "eval_every": 10, "learning_rate": 3e-3}
    with caplog.at_level(logging.INFO, logger="zegclip.picture_world.pretrain"):
        model = pretrain(PretrainArguments(output=str(tmp_path / "first"), steps=40, **settings))
    figures = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    assert figures[-1]["step"] == 40
    assert figures[-1]["loss"] < figures[0]["loss"]

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
