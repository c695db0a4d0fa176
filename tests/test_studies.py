"""The studies of the picture world: what is computed from predictions, and runs that are not done twice."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zegclip.picture_world.classes import OBJECT_NAMES, UNSEEN_TEST, class_ids
from zegclip.picture_world.dataset import draw_example, scene_seeds
from zegclip.picture_world.pretrain import save
from zegclip.picture_world.tiny_clip import build_model
from zegclip.picture_world.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[1]
SCENES = 40
UNSEEN = [index for index in class_ids(UNSEEN_TEST) if index < len(OBJECT_NAMES)]


@pytest.fixture
def studies(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("picture_world")


@pytest.fixture(scope="module")
def masks():
    return [np.asarray(draw_example("test", seed)["mask"]) for seed in scene_seeds("test")[:SCENES]]


def write(masks, folder, answers=None):
    """Save masks, with each class replaced by what `answers` says, as predictions."""
    table = np.arange(256, dtype=np.uint8)
    for true, answer in (answers or {}).items():
        table[true] = answer
    folder.mkdir()
    for index, mask in enumerate(masks):
        Image.fromarray(table[mask]).save(folder / f"{index:05d}.png")
    return folder


def test_predictions_of_the_tuning_split_have_its_own_ids(studies, tmp_path):
    masks = [np.asarray(draw_example("tuning", seed)["mask"]) for seed in scene_seeds("tuning")[:12]]
    figures = studies.analyse(write(masks, tmp_path / "p"), "tuning", 12)
    assert figures["hiou"] == 100
    assert not set(UNSEEN_TEST) & set(figures["per_class"])


def test_perfect_predictions(studies, masks, tmp_path):
    figures = studies.analyse(write(masks, tmp_path / "p"), "test", SCENES)
    assert {value for value in figures["per_class"].values() if not np.isnan(value)} == {100}
    assert figures["unseen_as_unseen"] == figures["unseen_named"] == 100
    assert figures["seen_as_unseen"] == figures["permuted_miou_unseen"] == 0
    assert len(figures["replicates"]) == studies.REPLICATES
    assert np.all(np.array(figures["replicates"]) == 100)


def test_unseen_objects_that_get_each_others_names(studies, masks, tmp_path):
    answers = dict(zip(UNSEEN, np.roll(UNSEEN, 1).tolist(), strict=True))
    figures = studies.analyse(write(masks, tmp_path / "p", answers), "test", SCENES)
    assert figures["unseen_as_unseen"] == 100
    assert figures["unseen_named"] == 0
    # One of the shifts undoes it, and the others find nothing.
    assert figures["permuted_miou_unseen"] == pytest.approx(100 / (len(UNSEEN) - 1))


def test_unseen_objects_that_are_taken_for_seen_ones(studies, masks, tmp_path):
    figures = studies.analyse(write(masks, tmp_path / "p", dict.fromkeys(UNSEEN, 0)), "test", SCENES)
    assert figures["unseen_as_unseen"] == 0
    assert np.isnan(figures["unseen_named"])
    assert all(row[1] == row[2] == 0 for row in figures["replicates"])
    assert len({row[0] for row in figures["replicates"]}) > 10  # houses depend on the scenes


def test_seen_objects_that_are_taken_for_unseen_ones(studies, masks, tmp_path):
    objects = set(range(len(OBJECT_NAMES))) - set(UNSEEN)
    figures = studies.analyse(write(masks, tmp_path / "p", dict.fromkeys(objects, UNSEEN[0])), "test", SCENES)
    assert figures["seen_as_unseen"] == figures["unseen_as_unseen"] == 100


def test_missing_predictions_are_refused(studies, masks, tmp_path):
    with pytest.raises(ValueError, match="40 scenes"):
        studies.analyse(write(masks[1:], tmp_path / "p"), "test", SCENES)


def test_intervals_cover_scenes_clips_and_seeds(studies):
    scenes = np.random.default_rng(0).normal(50, 2, size=(studies.REPLICATES, 3))
    one, other = {"replicates": scenes.tolist()}, {"replicates": (scenes + 20).tolist()}
    low, high = studies.interval({("a", 0): one}, 2)
    assert 44 < low < 48 < 52 < high < 56
    # What scenes do to one run and the opposite to another cancels: scenes are the same in all runs.
    mirrored = {"replicates": (100 - scenes).tolist()}
    low, high = studies.interval({("a", 0): one, ("b", 0): mirrored}, 2)
    assert high - low < 12
    for runs in ({("a", 0): one, ("b", 0): other}, {("a", 0): one, ("a", 1): other}):
        low, high = studies.interval(runs, 2)
        assert low < 52
        assert high > 68
    # More trainings do not make up for few CLIPs.
    many = {("a", seed): one for seed in range(5)} | {("b", seed): other for seed in range(5)}
    low, high = studies.interval(many, 2)
    assert low < 52
    assert high > 68


def test_deviations_are_of_clips_and_of_seeds(studies):
    def row(**of_clips):
        runs = {
            (clip, seed): dict.fromkeys(studies.COLUMNS, h) | {"replicates": [[h] * 3] * studies.REPLICATES}
            for clip, values in of_clips.items()
            for seed, h in enumerate(values)
        }
        return studies.format_row(runs)

    found = row(h=[10, 11, 12], S=[20, 30])
    assert float(found["h"]) == 18  # CLIPs count alike
    assert float(found["± CLIPs"]) == pytest.approx(np.std([11, 25], ddof=1), abs=0.1)
    assert float(found["± seeds"]) == pytest.approx(np.sqrt((2 + 50) / 3), abs=0.1)
    assert found["runs"] == "3 + 2"
    assert row(a=[10])["± CLIPs"] == row(a=[10], b=[12])["± seeds"] == ""


@pytest.mark.thorough
def test_a_study_runs_and_is_not_repeated(studies, tmp_path, monkeypatch, capsys):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    save(build_model(tokenizer, patch_size=12, width=32, layers=1), tokenizer, tmp_path / "clip")
    training = {"max_steps": 1, "save_steps": 1, "num_train_pictures": 4, "total_train_batch_size": 2}
    training |= {"per_device_train_batch_size": 2, "decoder_attention_heads": 1}
    study = {
        "runs": {
            "naclip": {"config": "picture_world_training_free.yaml"},
            "zegclip": {"config": "zegclip_picture_world_inductive.yaml"} | training,
            "offset": {"of": "zegclip", "seen_offset": 0.5},
        },
        "tables": {"All": {"NACLIP": "naclip", "ZegCLIP": "zegclip", "with an offset": "offset"}},
        "scenes": {"NACLIP": "naclip"},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    report = tmp_path / "report.json"
    words = [tmp_path / "study.yaml", "--clips", tmp_path / "clip", "--num_pictures", 9, "--eval_split", "test"]
    words += ["--use_cpu", "--output", tmp_path / "runs", "--report", report, "--jobs", 2]
    monkeypatch.setattr(sys, "argv", ["picture_world.py", *map(str, words)])
    studies.main()
    first = capsys.readouterr().out
    assert "NACLIP" in first
    assert "ZegCLIP" in first
    assert set(json.loads(report.read_text())["runs"]) == {f"{name}/clip/seed0" for name in study["runs"]}
    weights = [path.parents[2].name for path in (tmp_path / "runs").rglob("seed0/adapter_model.safetensors")]
    assert weights == ["zegclip"]  # trained once
    assert Image.open(report.with_suffix(".png")).width > 300
    assert Image.open(tmp_path / "report_scenes.jpg").width > 300

    monkeypatch.setattr(studies, "call", lambda *words, **more: pytest.fail("a run was repeated"))
    studies.main()
    assert capsys.readouterr().out == first
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seeds", "0", "1", "--report_only"])  # there is no second seed
    studies.main()
    assert capsys.readouterr().out == first
