"""The evaluation loop: what it counts, what it keeps, and what it refuses to mix."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from zegclip import DeepPromptConfig
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.datasets import name_pictures
from zegclip.processing.image_reading import load_class_ids
from zegclip.processing.input_error import InputError
from zegclip.processing.merging import merge_scores, resize_maps
from zegclip.processing.metrics import class_counts
from zegclip.processing.refinement import refine
from zegclip.processing.windows import predict_windows
from zegclip.training import counting
from zegclip.training.counting import (
    CountStore,
    Protocol,
    default_offset,
    evaluate_pictures,
    fingerprint,
    predict_maps,
)
from zegclip.training.pictures import EvaluationPictures

SPLIT = ClassSplit(names=("a", "b", "c"), seen_ids=(0, 1), unseen_ids=(2,))
PROTOCOLS = {"windows": Protocol(32, 20, 0.1), "whole": Protocol(None, None, 0.0)}


@pytest.fixture
def pictures(tmp_path, image_processor):
    rng = np.random.default_rng(0)
    rows = {"image": [], "mask": []}
    for index in range(4):
        height, width = 30 + 7 * index, 50 - 5 * index
        mask = rng.integers(3, size=(height, width))
        mask[:5] = 255
        if index == 3:
            mask[:] = 255
        for name, array in (("image", rng.integers(256, size=(height, width, 3))), ("mask", mask)):
            path = tmp_path / f"{name}_{index}.png"
            PILImage.fromarray(array.astype(np.uint8)).save(path)
            rows[name].append(str(path))
    data = Dataset.from_dict(rows, features=Features({name: Image(decode=False) for name in rows}))
    return EvaluationPictures(data, SPLIT, image_processor)


@pytest.fixture
def class_embeds():
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)


@pytest.fixture
def run(model, class_embeds, pictures, tmp_path):
    """Evaluate the pictures; a folder's later runs go on with what the earlier ones have counted."""

    def evaluate(folder="e", record=None, model=model, pictures=pictures, **kwargs):
        store = CountStore(tmp_path / folder, record or {"model": "m"})
        return evaluate_pictures(model, class_embeds, pictures, PROTOCOLS, store, batch_size=4, **kwargs)

    return evaluate


def equal(found, expected):
    return all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_counts_and_saves_each_picture_under_each_protocol(model, class_embeds, run, pictures, tmp_path, workers):
    found = run(num_workers=workers, save_predictions=True)
    assert found.keys() == PROTOCOLS.keys()
    for name, protocol in PROTOCOLS.items():
        expected = np.zeros((3, 3), dtype=np.int64)
        for index in range(len(pictures)):
            sample = pictures[index]
            with torch.no_grad():
                (ids,) = predict_maps(
                    model, [sample["pixel_values"]], class_embeds, protocol, [sample["labels"].shape],
                    seen_ids=SPLIT.seen_ids, batch_size=4,
                )  # fmt: skip
            expected += class_counts(ids, sample["labels"], 3).numpy()
            with PILImage.open(tmp_path / "e" / "predictions" / name / f"image_{index}.png") as mask:
                assert np.array_equal(np.asarray(mask), ids)
        assert np.array_equal(found[name], expected)


@pytest.mark.parametrize("values", [None, (7, 3, 255), (7, 300, 65535)])
def test_predictions_can_be_read_as_the_data_sets_masks(model, class_embeds, run, pictures, tmp_path, values):
    """Their names and folders are those of the pictures, their pixels the values of the masks."""
    split = replace(SPLIT, mask_values=values, ignored_values=(254,))
    rows = pictures.data.to_list()
    for row, name in zip(rows, ("left/a.png", "left/b.c.png", "right/A.jpg", "right/a.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"]["path"] = str(Path(row["image"]["path"]).rename(path))
        ids = load_class_ids(row["mask"]["path"])
        mask = np.where(ids == 255, 254, np.take(values or (0, 1, 2), ids % 3)).astype(np.uint16)
        PILImage.fromarray(mask).save(row["mask"]["path"])
    data = Dataset.from_list(rows, features=pictures.data.features)
    valued = EvaluationPictures(data, split, pictures.image_processor)
    run("valued", pictures=valued, save_predictions=True)
    folder = tmp_path / "valued" / "predictions" / "whole"
    names = ["left/a.png", "left/b.c.png", "right/A.png", "right/a_2.png"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == sorted(names)
    for index, name in enumerate(names):
        sample = valued[index]
        size = sample["labels"].shape
        (ids,) = predict_maps(
            model, [sample["pixel_values"]], class_embeds, PROTOCOLS["whole"], [size], seen_ids=(0, 1), batch_size=4
        )
        assert np.array_equal(split.labels_of(load_class_ids(folder / name)), ids)
    # Renamed, it would be taken for another picture's.
    Path(rows[1]["image"]["path"]).rename(tmp_path / "images" / "left" / "c.png")
    rows[1]["image"]["path"] = str(tmp_path / "images" / "left" / "c.png")
    valued.data = Dataset.from_list(rows, features=pictures.data.features)
    run("valued", pictures=valued, save_predictions=True)
    assert {path.name for path in (folder / "left").iterdir()} == {"a.png", "c.png"}


def test_pictures_without_paths_are_named_by_their_rows(pictures):
    files = [(None, b"x"), ("a.png", b"x"), ("../a.png", b"x"), ("zip://b/a.jpg::/data.zip", None), (None, b"x")]
    rows = [{"image": {"path": path, "bytes": content}, "mask": None} for path, content in files]
    names = name_pictures(Dataset.from_list(rows, features=pictures.data.features))
    assert [names[0], names[4]] == ["000000", "000004"]
    assert len(set(names)) == 5
    assert not any(".." in name or name.startswith("/") for name in names)


def test_a_picture_that_was_skipped_is_tried_again(run, pictures, tmp_path):
    counts = run("whole")
    path = Path(pictures.data[1]["image"]["path"])
    content = path.read_bytes()
    path.write_bytes(content[:60])
    pictures.skipped_file = tmp_path / "skipped.txt"
    assert run()["whole"][2].sum() < counts["whole"][2].sum()
    path.write_bytes(content)
    assert equal(run(), counts)


def test_a_torn_line_is_done_again(run, tmp_path):
    counts = run()
    (file,) = (tmp_path / "e").glob("counts-*.jsonl")
    for kept in (0, 1, 30):
        text = file.read_text()
        file.write_text(text[: text.rfind('{"picture"') + kept])
        assert equal(run(), counts)


def change(path, seed=7):
    """Write other pixels of the same size, as a repaired annotation or another picture would have."""
    with PILImage.open(path) as picture:
        values = np.random.default_rng(seed).integers(3, size=np.asarray(picture).shape).astype(np.uint8)
    PILImage.fromarray(values).save(path)
    os.utime(path, (0, 0))  # older than the counts


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_picture_that_has_changed_is_done_again(run, pictures, tmp_path, capsys, column):
    run(save_predictions=True)
    predictions = tmp_path / "e" / "predictions" / "whole"
    before = {path.name: path.stat().st_ino for path in predictions.iterdir()}
    change(pictures.data[1][column]["path"])
    capsys.readouterr()
    again = run(save_predictions=True)
    assert "3 of 4 pictures" in capsys.readouterr().out
    assert equal(again, run("fresh", save_predictions=True))
    for path in predictions.iterdir():
        fresh = tmp_path / "fresh" / "predictions" / "whole" / path.name
        assert path.read_bytes() == fresh.read_bytes()
        assert path.name == "image_1.png" or path.stat().st_ino == before[path.name]


def test_a_picture_that_has_changed_and_cannot_be_read_counts_no_more(run, pictures, tmp_path):
    run(save_predictions=True)
    Path(pictures.data[1]["mask"]["path"]).unlink()
    with pytest.raises(ValueError, match=r"mask_1\.png"):
        run()
    pictures.skipped_file = tmp_path / "skipped.txt"
    assert equal(run(), run("fresh"))
    assert not list((tmp_path / "e" / "predictions").glob("*/image_1.png"))


def test_the_same_pictures_are_not_done_again_wherever_they_lie(run, pictures, tmp_path):
    """In the same place, as files elsewhere, and as bytes in a table."""
    counts = run()

    def refuse(**kwargs):
        raise AssertionError("a picture was predicted again")

    assert equal(run(model=refuse), counts)
    rows = [{name: Path(file["path"]) for name, file in row.items()} for row in pictures.data]
    (tmp_path / "moved").mkdir()
    moved = {name: [str(row[name].rename(tmp_path / "moved" / row[name].name)) for row in rows] for name in rows[0]}
    embedded = {
        name: [{"path": None, "bytes": Path(path).read_bytes()} for path in paths] for name, paths in moved.items()
    }
    for columns in (moved, embedded):
        data = Dataset.from_dict(columns, features=pictures.data.features)
        elsewhere = EvaluationPictures(data, SPLIT, pictures.image_processor)
        assert equal(run(model=refuse, pictures=elsewhere), counts)


def test_pictures_in_another_order_are_done_again(run, pictures, tmp_path):
    counts = run()
    pictures.data = pictures.data.select([1, 0, 2, 3])
    assert equal(run(save_predictions=True), counts)
    assert len(list((tmp_path / "e" / "predictions" / "whole").iterdir())) == 4


def test_counts_of_an_older_version_or_another_evaluation(run, tmp_path, capsys):
    """Counts without the content of their pictures, or of a record without a field, are done again."""
    counts = run()
    (file,) = (tmp_path / "e").glob("counts-*.jsonl")
    first, *others = map(json.loads, file.read_text().splitlines())
    del first["of"]
    first["counts"]["whole"][1] = [9] * len(first["counts"]["whole"][0])
    file.write_text("".join(json.dumps(entry) + "\n" for entry in (first, *others)))
    capsys.readouterr()
    assert equal(run(), counts)
    assert "3 of 4 pictures" in capsys.readouterr().out
    run(record={"model": "m", "mean": 0.5})
    assert "evaluated before" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="mean"):
        run(record={"model": "m", "mean": 0.4})


def test_a_retrained_model_has_another_fingerprint(model):
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.decode_head.query_proj.bias[0] += 1e-6
    assert fingerprint(model) != before
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    before = fingerprint(model)
    with torch.no_grad():
        model.decode_head.original_module.query_proj.bias[0] += 1  # at random on a plain CLIP, and not in use
        assert fingerprint(model) == before
        model.decode_head.modules_to_save["default"].query_proj.bias[0] += 1e-6
    assert fingerprint(model) != before


def test_another_configuration_has_another_fingerprint(model):
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    known = {fingerprint(model)}
    peft_config, clip_config = model.peft_config["default"], model.config.clip_config
    for config, field, value in (
        (model.config, "decoder_attention_heads", 1),
        (clip_config.vision_config, "hidden_act", "gelu"),
        (clip_config.text_config, "eos_token_id", 2),
        (peft_config, "spectral_layers", [1]),
    ):
        setattr(config, field, value)
        assert fingerprint(model) not in known
        known.add(fingerprint(model))
    before = fingerprint(model)
    model.config._name_or_path = peft_config.base_model_name_or_path = "/elsewhere"
    assert fingerprint(model) == before


@pytest.mark.parametrize("class_of_name", [None, [0, 1, 1]])
def test_a_protocol_may_refine_blend_and_have_a_background(model, class_embeds, pictures, class_of_name):
    sample = pictures[1]
    pixel_values, size = sample["pixel_values"], sample["labels"].shape
    owners = None if class_of_name is None else torch.tensor(class_of_name)
    others = class_embeds.flip(0)

    def predict(**fields):
        with torch.no_grad():
            (ids,) = predict_maps(
                model, [pixel_values], class_embeds, Protocol(32, 20, 0.2, **fields), [size], seen_ids=(0,),
                batch_size=4, class_of_name=owners, embeds_without_prompts=others,
            )  # fmt: skip
            return ids

    with torch.no_grad():
        trained = predict_windows(model, pixel_values[None], class_embeds, 32, 20)
        alone = predict_windows(model.get_training_free_logits, pixel_values[None], others, 32, 20)
    scores = merge_scores(trained, size, seen_ids=(0,), seen_offset=0.2)
    blended = 0.7 * scores + 0.3 * merge_scores(alone, size)
    middle = scores.amax(dim=0).median().item()

    def best(scores):
        ids = scores.argmax(dim=0)
        return ids if owners is None else owners[ids]

    cases = {
        "usual": (predict(), best(scores)),
        "background": (predict(background_threshold=middle), best(scores).where(scores.amax(dim=0) >= middle, 0)),
        "blend": (predict(training_free_weight=0.3), best(blended)),
        "refined": (predict(refine=True), best(refine(scores, resize_maps(pixel_values, *size)))),
    }
    for case, (found, expected) in cases.items():
        assert (found == expected).float().mean() > 0.99, case  # ties are rounded in another order
    assert not torch.equal(cases["usual"][0], cases["background"][0])


def test_protocols_that_are_the_same_are_predicted_once(model, class_embeds, pictures, tmp_path):
    calls = []

    def count(**inputs):
        calls.append(inputs)
        return model(**inputs)

    protocols = dict.fromkeys(("one", "other"), Protocol(None, None, 0.0))
    store = CountStore(tmp_path / "e", {"model": "m"})
    counts = evaluate_pictures(count, class_embeds, pictures, protocols, store, batch_size=4, save_predictions=True)
    assert np.array_equal(counts["one"], counts["other"])
    assert len(calls) == len(pictures)
    assert len(list((tmp_path / "e" / "predictions").glob("*/*.png"))) == 2 * len(pictures)


def test_scores_that_are_nan_count_for_no_class(model, class_embeds, pictures, tmp_path):
    """As after an overflow in half precision."""
    with torch.no_grad():
        model.clip.visual_projection.weight[0, 0] = torch.nan
    store = CountStore(tmp_path / "e", {"model": "m"})
    with pytest.raises(InputError, match="NaN"):
        evaluate_pictures(model, class_embeds, pictures, PROTOCOLS, store, batch_size=4)
    assert not store.read()


def test_pictures_share_forward_passes_on_accelerators(model, class_embeds, pictures, tmp_path, monkeypatch):
    """What is counted and saved for each picture stays the same; one of them cannot be read."""
    calls = []

    def count(**inputs):
        calls.append(len(inputs["pixel_values"]))
        return model(**inputs)

    def evaluate(name):
        calls.clear()
        store = CountStore(tmp_path / name, {"model": "m"})
        evaluate_pictures(count, class_embeds, skipping, protocols, store, batch_size=100, save_predictions=True)
        saved = sorted((tmp_path / name / "predictions").rglob("*.png"))
        lines = sorted((tmp_path / name / "counts-00000.jsonl").read_text().splitlines())
        return lines, [(path.name, path.read_bytes()) for path in saved]

    protocols = {"windows": Protocol(16, 16, 0.1), "whole": Protocol(None, None, 0.0)}
    skipping = EvaluationPictures(pictures.data, SPLIT, pictures.image_processor, tmp_path / "skipped.txt")
    Path(pictures.data[1]["image"]["path"]).write_bytes(b"broken")
    alone = evaluate("alone")
    windows, passes = sum(calls), len(calls)
    group = counting._group
    monkeypatch.setattr(
        counting, "_group", lambda samples, batches: group(samples, dict.fromkeys(batches, counting.BatchSize(100)))
    )
    assert evaluate("together") == alone
    assert len(alone[0]) == 3
    assert len(alone[1]) == 6
    assert sum(calls) == windows
    assert len(calls) < passes


def test_the_offset_belongs_to_the_inductive_setting():
    assert default_offset("inductive", "softmax") == 0
    assert [default_offset(s) for s in ("inductive", "transductive", "fully_supervised", "cross_dataset")] == [
        0.1, 0, 0, 0,
    ]  # fmt: skip
