"""The evaluation loop: what it counts, what it keeps, and what it refuses to mix."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from zegclip import DeepPromptConfig
from zegclip.evaluation import CountStore, Protocol, default_offset, evaluate_pictures, fingerprint, predict_map
from zegclip.pictures import EvaluationPictures
from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.processing.metrics_zegclip import class_counts

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


def run(model, class_embeds, pictures, folder, record=None, **kwargs):
    store = CountStore(folder, record or {"model": "m"})
    return evaluate_pictures(model, class_embeds, pictures, PROTOCOLS, store, batch_size=4, **kwargs)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_counts_each_picture_once_under_each_protocol(model, class_embeds, pictures, tmp_path, workers):
    found = run(model, class_embeds, pictures, tmp_path / "e", num_workers=workers)
    assert found.keys() == PROTOCOLS.keys()
    for name, protocol in PROTOCOLS.items():
        expected = np.zeros((3, 3), dtype=np.int64)
        for index in range(len(pictures)):
            sample = pictures[index]
            with torch.no_grad():
                ids = predict_map(
                    model, sample["pixel_values"], class_embeds, protocol, sample["labels"].shape,
                    seen_ids=SPLIT.seen_ids, batch_size=4,
                )  # fmt: skip
            expected += class_counts(ids, sample["labels"], 3).numpy()
        assert np.array_equal(found[name], expected)


def test_predictions_are_saved_with_the_ids(model, class_embeds, pictures, tmp_path):
    run(model, class_embeds, pictures, tmp_path / "e", save_predictions=True)
    for index in range(len(pictures)):
        sample = pictures[index]
        with torch.no_grad():
            ids = predict_map(
                model, sample["pixel_values"], class_embeds, PROTOCOLS["whole"], sample["labels"].shape,
                seen_ids=(), batch_size=4,
            )  # fmt: skip
        with PILImage.open(tmp_path / "e" / "predictions" / "whole" / f"{index:06d}.png") as mask:
            assert np.array_equal(np.asarray(mask), ids)


def test_pictures_that_are_done_are_not_done_again(model, class_embeds, pictures, tmp_path, capsys):
    counts = run(model, class_embeds, pictures, tmp_path / "e")

    def refuse(**kwargs):
        raise AssertionError("a picture was predicted again")

    again = run(refuse, class_embeds, pictures, tmp_path / "e")
    assert all(np.array_equal(again[name], counts[name]) for name in counts)
    assert "4 of 4 pictures were evaluated before" in capsys.readouterr().out


def test_a_picture_that_was_skipped_is_tried_again(model, class_embeds, pictures, tmp_path):
    counts = run(model, class_embeds, pictures, tmp_path / "whole")
    path = Path(pictures.data[1]["image"]["path"])
    content = path.read_bytes()
    path.write_bytes(content[:60])
    pictures.skipped_file = tmp_path / "skipped.txt"
    less = run(model, class_embeds, pictures, tmp_path / "e")
    assert less["whole"][2].sum() < counts["whole"][2].sum()
    path.write_bytes(content)
    again = run(model, class_embeds, pictures, tmp_path / "e")
    assert all(np.array_equal(again[name], counts[name]) for name in counts)


def test_a_torn_line_is_done_again(model, class_embeds, pictures, tmp_path):
    counts = run(model, class_embeds, pictures, tmp_path / "e")
    (file,) = (tmp_path / "e").glob("counts-*.jsonl")
    for kept in (0, 1, 30):
        text = file.read_text()
        file.write_text(text[: text.rfind('{"picture"') + kept])
        again = run(model, class_embeds, pictures, tmp_path / "e")
        assert all(np.array_equal(again[name], counts[name]) for name in counts)


def test_counts_of_another_evaluation_are_refused(model, class_embeds, pictures, tmp_path):
    run(model, class_embeds, pictures, tmp_path / "e", {"model": "m", "classes": ["a"]})
    with pytest.raises(ValueError, match=r"holds another evaluation \(classes differs: \['a'\] there, \['b'\] now"):
        CountStore(tmp_path / "e", {"model": "m", "classes": ["b"]})


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


def test_the_offset_belongs_to_the_inductive_setting():
    assert [default_offset(s) for s in ("inductive", "transductive", "fully_supervised", "cross_dataset")] == [
        0.1, 0, 0, 0,
    ]  # fmt: skip
