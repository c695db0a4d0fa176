"""`zegclip verify` on a stand-in: a tiny CLIP, names encoded by transformers' own text tower, and a short run."""

import copy
import json
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from small_run import CONFIG, ROOT
from transformers import AutoTokenizer, CLIPModel

from zegclip.commands import verify
from zegclip.commands.main import main
from zegclip.loading import load_base
from zegclip.processing.benchmarks import read_class_lists

RUN = ["--num_eval_pictures", "2", "--window_stride", "48", "--use_cpu", "true"]


@pytest.fixture
def clip(model, tokenizer, tmp_path):
    """A CLIP whose text tower is long enough for names letter by letter in a template."""
    config = copy.deepcopy(model.clip.config)
    config.text_config.max_position_embeddings = tokenizer.model_max_length = 77
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def reference(clip, tmp_path):
    """What the reference has of the real CLIP, of this one, in half precision; made without code of ours."""
    loaded, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    lists = read_class_lists()

    @torch.no_grad()
    def embed(names, templates):
        texts = [template.format(name) for name in lists[names]["names"] for template in lists["templates"][templates]]
        features = loaded.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
        mean = F.normalize(features, dim=-1).unflatten(0, (-1, len(lists["templates"][templates]))).mean(1)
        return F.normalize(mean, dim=-1).half()

    table = loaded.vision_model.embeddings.position_embedding.weight.detach()
    stored = {
        "position_rows": torch.arange(0, len(table), 4),
        "position_table": table[::4].half(),
        "voc12_single": embed("voc", "single"),
        "coco_multi": embed("coco_stuff", "multi"),
    }
    save_file(stored, tmp_path / "reference.safetensors")
    return tmp_path / "reference.safetensors"


@pytest.fixture
def run(clip, reference, tmp_path, capsys):
    def run(*words):
        words = ["verify", "--model", clip, "--reference", reference, "--output", tmp_path / "out", *words]
        status = main([str(word) for word in words])
        output, errors = capsys.readouterr()
        assert "Traceback" not in output + errors
        return status, output, errors

    return run


def change(clip, name):
    weights = load_file(clip / "model.safetensors")
    weights[name].view(-1)[:8] += 0.5
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})


def test_the_same_clip_is_within_and_another_one_is_not(run, clip):
    status, output, _ = run()
    assert status == 0
    assert re.findall("within|OUTSIDE", output) == ["within"] * 3
    change(clip, "vision_model.embeddings.position_embedding.weight")
    status, output, _ = run()
    assert status == 1
    assert re.findall("within|OUTSIDE", output) == ["OUTSIDE", "within", "within"]


def test_a_changed_text_tower_is_found(run, clip):
    change(clip, "text_projection.weight")
    status, output, _ = run()
    assert status == 1
    assert re.findall("within|OUTSIDE", output) == ["within", "OUTSIDE", "OUTSIDE"]


def test_a_model_is_evaluated_and_compared_with_the_published_figures(run, model, processor, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "converted")
    processor.save_pretrained(tmp_path / "converted")
    words = ("--converted", tmp_path / "converted", "--config", CONFIG, "--", *RUN)
    status, output, _ = run(*words)
    assert status == 0
    assert "no figure" in output
    results = json.loads((tmp_path / "out" / "zegclip_picture_world_inductive" / "results.json").read_text())
    measured = results["model, papers' protocol"]
    monkeypatch.setattr(verify, "PUBLISHED", tmp_path / "figures.json")
    for added, expected in ((0.4, 0), (-0.4, 0), (0.6, 1)):
        figures = {"pacc": measured["pacc"], "miou_seen": measured["miou_seen"] + added}
        verify.PUBLISHED.write_text(json.dumps({"somebody": {"zegclip_picture_world_inductive": figures}}))
        status, output, _ = run(*words)
        assert status == expected
        assert output.count("OUTSIDE") == expected
        assert output.count("zegclip_picture_world_inductive,") == 2


def test_the_folder_of_a_data_set_is_that_of_its_configurations(run, clip, processor, tmp_path, monkeypatch):
    folder = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("one\n")
    Image.new("RGB", (40, 32), "red").save(folder / "JPEGImages" / "one.jpg")
    Image.new("L", (40, 32), 3).save(folder / "SegmentationClass" / "one.png")
    load_base(clip, {"decode_head_type": "similarity"}).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    config = str(ROOT / "configs" / "zegclip_voc_inductive.yaml")
    monkeypatch.setitem(verify.DATA_SETS, "voc", (config,))
    fields = ["--use_cpu", "true", "--image_size", "32", "--dataloader_num_workers", "0"]
    words = ["--voc", folder, "--converted", tmp_path / "model", "--config", config]
    status, output, _ = run("--model", tmp_path / "model", *words, "--", *fields)
    assert status == 1  # these are not the published figures
    assert output.count("zegclip_voc_inductive,") == 2 * 4
    assert output.count("OUTSIDE") >= 2
    assert "91.9" in output


def test_what_was_measured_before_an_error_is_printed(run, clip):
    status, output, errors = run("--converted", clip / "no", "--config", CONFIG)
    assert status == 1
    assert output.count("within") == 3
    assert errors.count("\n") == 1


def test_what_cannot_be_compared_is_said(run, clip, reference, tmp_path):
    for words, named in (
        (["--converted", clip], "--config"),
        (["--config", CONFIG], "--converted"),
        (["--voc", tmp_path / "no"], "no such folder"),
        (["--model", tmp_path / "no"], "no"),
        (["--reference", tmp_path / "no"], "no"),
    ):
        status, output, errors = run(*words)
        assert (status, output) == (1, "")
        assert named in errors
        assert errors.count("\n") == 1
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "nothing to compare" in run("--reference", tmp_path / "other.safetensors")[2]
    assert "another CLIP" in run("--reference", verify.REFERENCE)[2]


def test_the_included_pieces_are_those_of_the_lists():
    assert verify.REFERENCE.stat().st_size < 300_000
    stored, lists = load_file(verify.REFERENCE), read_class_lists()
    assert stored["position_table"].shape == (len(stored["position_rows"]), 768)
    assert int(stored["position_rows"][0]) == 0
    for name, (names, _) in verify._TABLES.items():
        if name in stored:
            assert stored[name].shape == (len(lists[names]["names"]), 512)
            norms = stored[name].float().norm(dim=-1)
            torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-3, rtol=0)


def test_published_figures_are_of_configurations_and_agree_with_themselves():
    configs = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    run = {config for configs in verify.DATA_SETS.values() for config in configs}
    assert {name for name in configs if name.startswith("training_free_")} <= run
    for config, figures in verify.read_figures().items():
        assert config in configs | run
        assert all(0 < value < 100 for value in figures.values())
        if "hiou" in figures:
            seen, unseen = figures["miou_seen"], figures["miou_unseen"]
            assert abs(2 * seen * unseen / (seen + unseen) - figures["hiou"]) < 0.15
