"""`zegclip demo`: which scenes and labels it has, and what it prints and writes."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import zegclip
from zegclip.commands.demo import choose_labels, draw_demo_scenes, overlap
from zegclip.commands.main import main
from zegclip.loading import load_base, load_model, load_processor
from zegclip.picture_world.classes import CLASS_NAMES, SEEN
from zegclip.plain_clip import training_free_fields
from zegclip.processing.pipeline import TASK


@pytest.fixture
def default_model(model, model_folder, monkeypatch):
    model.config.seen_class_names = list(SEEN)
    model.save_pretrained(model_folder)
    monkeypatch.setattr(zegclip, "DEFAULT_MODEL", model_folder)
    return model_folder


def test_demo(default_model, tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        f"scene_{number}{end}"
        for number in (1, 2, 3)
        for end in (".png", "_strip.png", "_overlay.png", "_mask.png", ".json")
    }
    fields = training_free_fields() | {"prompt_templates": load_model(default_model).config.prompt_templates}
    untrained = pipeline(
        TASK,
        model=load_base(default_model, fields),
        processor=load_processor(default_model),
        output_type="class_map",
    )
    segmenter = pipeline(TASK, model=str(default_model), output_type="class_map")
    for number, scene in enumerate(draw_demo_scenes(0, SEEN), start=1):
        assert f"side by side: {tmp_path / 'demo' / f'scene_{number}_strip.png'}" in output
        picture = Image.open(tmp_path / "demo" / f"scene_{number}.png")
        assert picture.tobytes() == scene.image.tobytes()
        table = output.split(f"scene_{number}.png\n")[1].split("side by side:")[0].splitlines()[1:-1]
        rows = {line.split()[0]: line.split()[1:] for line in table}
        record = json.loads((tmp_path / "demo" / f"scene_{number}.json").read_text())
        ids = np.asarray(Image.open(tmp_path / "demo" / f"scene_{number}_mask.png"))
        truth = np.asarray(scene.mask)
        alone, trained = (
            segment(scene.image, candidate_labels=list(rows))["segmentation"] for segment in (untrained, segmenter)
        )
        assert list(rows) == [row["label"] for row in record["labels"]]
        for index, (name, cells) in enumerate(rows.items()):
            assert cells[0] == ("yes" if name in SEEN else "no")
            drawn = truth == CLASS_NAMES.index(name)
            *overlaps, share, _ = re.findall(r"[\d.]+(?: %)?|-", " ".join(cells[1:]))
            assert float(share.removesuffix(" %")) == pytest.approx(100 * (ids == index).mean(), abs=0.06)
            for found, value in zip((alone == index, trained == index, ids == index), overlaps, strict=True):
                if (found | drawn).any():
                    expected = 100 * (found & drawn).sum() / (found | drawn).sum()
                    assert float(value.removesuffix(" %")) == pytest.approx(expected, abs=0.06)
                else:
                    assert value == "-"


@pytest.mark.parametrize("seed", range(4))
def test_scenes_show_seen_and_unseen_classes_and_labels_have_more(seed):
    scenes = draw_demo_scenes(seed, SEEN)
    assert [scene.mask.tobytes() for scene in scenes] == [
        scene.mask.tobytes() for scene in draw_demo_scenes(seed, SEEN)
    ]
    labels = choose_labels(scenes, SEEN, seed)
    shown = {CLASS_NAMES[index] for scene in scenes for index in np.unique(np.asarray(scene.mask))}
    for scene in scenes:
        names = {CLASS_NAMES[thing.class_id] for thing in scene.things}
        assert names - set(SEEN)
    assert shown & set(SEEN)
    assert shown < set(labels)
    absent = set(labels) - shown
    assert len(absent & set(SEEN)) == len(absent - set(SEEN)) == 2
    other = draw_demo_scenes(seed + 1, SEEN)
    assert len({scene.image.tobytes() for scene in (*scenes, *other)}) == 6


def test_overlap():
    ids, truth = np.array([[0, 0, 1]]), np.array([[5, 6, 6]])
    assert overlap(ids, truth, 0, 5) == 0.5
    assert overlap(ids, truth, 1, 5) == 0
    assert np.isnan(overlap(ids, truth, 2, 7))


def test_without_the_default_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zegclip, "DEFAULT_MODEL", tmp_path / "nothing")
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 1
    assert capsys.readouterr().err.startswith(f"zegclip: {tmp_path / 'nothing'}: ")
    assert not (tmp_path / "demo").exists()
