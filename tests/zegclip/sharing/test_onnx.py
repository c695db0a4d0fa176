"""ONNX files against the model they were made from, on sizes and numbers that they were not traced with."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch.export import Dim

from zegclip import DEFAULT_MODEL, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.commands.main import main
from zegclip.loading import load_model, load_processor
from zegclip.modeling.prompt_config import DeepPromptConfig
from zegclip.processing.pipeline import ZeroShotImageSegmentationPipeline
from zegclip.sharing.onnx import TOLERANCE, TextGraph, VisionGraph, check_onnx, compare, describe, export_onnx

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "examples" / "onnx" / "segment.py"
METHODS = ("zegclip", "spt-seg", "ldvc")
TRAINING_FREE = ("naclip", "sclip", "clearclip", "maskclip")
# Each takes long to export; SPT-SEG's differs least from ZegCLIP's.
MOST_METHODS = ["zegclip", pytest.param("spt-seg", marks=pytest.mark.slow), "ldvc"]
FILES = ["text.onnx", "tokenizer.json", "vision.onnx", "zegclip.json"]

_exported: dict[str, Path] = {}


def build(method, model, processor):
    """Put a method's head and prompts on the tiny CLIP, with weights that make names and places matter."""
    if method in TRAINING_FREE:
        with torch.no_grad():
            model.clip.text_model.embeddings.token_embedding.weight.mul_(20)
        config = ZegClipConfig(
            clip_config=model.config.clip_config, decode_head_type="similarity", dense_attention=method
        )
        training_free = ZegClipForSemanticSegmentation(config).eval()
        training_free.clip.load_state_dict(model.clip.state_dict())
        return training_free
    heads = {
        "zegclip": {"num_decoder_layers": 2},
        "spt-seg": {"decode_head_type": "spectral", "num_decoder_layers": 2, "decoder_low_frequency_heads": 1},
        "ldvc": {
            "decode_head_type": "consensus", "num_decoder_layers": 1, "out_indices": [1], "decoder_window_size": 2,
            "decoder_top_k": 3,
        },
    }  # fmt: skip
    prompts = {
        "zegclip": {},
        "spt-seg": {"spectral_prompt": True, "spectral_layers": [1]},
        "ldvc": {"text_prompts": "whole", "text_prompt_ids": processor.text_prompt_ids()},
    }
    torch.manual_seed(1)
    base = ZegClipForSemanticSegmentation(ZegClipConfig.from_dict(model.config.to_dict() | heads[method]))
    base = get_peft_model(base, DeepPromptConfig(num_tokens=3, **prompts[method])).get_base_model().eval()
    with torch.no_grad():
        base.clip.text_model.embeddings.token_embedding.weight.mul_(20)
        for name, parameter in base.named_parameters():
            if "decode_head" in name and parameter.ndim == 2:
                parameter.mul_(3)
            if "deep_prompt_filter" in name:
                parameter.mul_(50)
    return base


@pytest.fixture
def built(request, model, processor, tmp_path_factory):
    """A model of the method that a test asks for, its processor and its ONNX files, which are made once."""
    tiny = build(request.param, model, processor)
    if request.param not in _exported:
        folder = tmp_path_factory.mktemp("onnx")
        export_onnx(tiny, processor, folder)
        _exported[request.param] = folder
    return tiny, processor, _exported[request.param]


@pytest.mark.parametrize(
    "built",
    [*MOST_METHODS, "naclip", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINING_FREE[1:])],
    indirect=True,
)
def test_files_give_what_the_model_gives(built):
    tiny, processor, folder = built
    for names, batch, size in (
        (["cat"], 1, (32, 32)),
        (["a", "cat", "b", "c", "d"], 3, (29, 90)),
        (["cat", "dog"], 2, (200, 64)),
        (["cat", "dog"], 1, (8, 41)),
        (["cat"], 1, (8, 8)),
    ):
        differences = compare(tiny, processor, folder, names, batch, size)
        assert max(differences.values()) < TOLERANCE, (names, batch, size, differences)
    assert max(check_onnx(tiny, processor, folder).values()) < TOLERANCE
    # Logits depend on pictures and names: else agreement would say little.
    ids = torch.tensor(processor(text=["cat", "dog", "b"])["input_ids"])[:, None]
    with torch.no_grad():
        logits = tiny(torch.randn(2, 3, 40, 72), class_embeds=TextGraph(tiny)(ids)).logits
    assert logits.std(dim=(0, 2, 3)).min() > 1e-3
    assert logits.std(dim=1).max() > 1e-3


@pytest.mark.parametrize("built", ["zegclip", "ldvc"], indirect=True)
def test_any_number_of_templates_is_averaged(built):
    tiny, processor, folder = built
    rows = processor(text=["cat", "dog", "a b c d", "e", "f", "g h"])["input_ids"]
    text = onnxruntime.InferenceSession(folder / "text.onnx")
    for count in (1, 2, 3):
        (embeds,) = text.run(None, {"input_ids": np.array(rows).reshape(6 // count, count, -1)})
        with torch.no_grad():
            expected = tiny.get_class_embeds(torch.tensor(rows), num_templates=count).numpy()
        np.testing.assert_allclose(embeds, expected, atol=1e-5)


@pytest.mark.parametrize("built", MOST_METHODS, indirect=True)
def test_names_of_every_length_fit(built):
    tiny, processor, folder = built
    longest = json.loads((folder / "zegclip.json").read_text())["context_length"]
    assert longest == (31 if tiny.config.decode_head_type == "consensus" else 32)
    words = len(processor.text_prompt_ids()) - 1
    names = ["b" * length for length in range(1, 60)]
    names = [name for name in names if len(processor.tokenizer(f"a photo of a {name}")["input_ids"]) <= longest]
    assert max(len(row) for row in processor(text=names)["input_ids"]) == longest > words + 2
    assert compare(tiny, processor, folder, names[-2:], 1, (32, 32))["class_embeds"] < 1e-5


@pytest.mark.parametrize("built", MOST_METHODS, indirect=True)
def test_files_are_whole_and_say_nothing_of_the_machine(built):
    _, _, folder = built
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for name in ("text.onnx", "vision.onnx"):
        onnx.checker.check_model(folder / name, full_check=True)
        content = (folder / name).read_bytes()
        for secret in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", ".py", "stack_trace"):
            assert secret.encode() not in content, secret


@pytest.mark.parametrize("built", ["zegclip"], indirect=True)
def test_files_of_another_model_are_refused(built):
    tiny, processor, folder = built
    with torch.no_grad():
        tiny.clip.visual_projection.weight.mul_(-1)
    with pytest.raises(ValueError, match="logits"):
        check_onnx(tiny, processor, folder)


@pytest.mark.parametrize("values", [(math.nan, 1e-6), (1e-6, math.nan)])
def test_a_difference_that_is_no_number_is_not_lost(model, processor, tmp_path, monkeypatch, values):
    """Neither in the first comparison nor in the second."""
    found = iter(values)
    monkeypatch.setattr("zegclip.sharing.onnx.compare", lambda *_: {"logits": next(found)})
    with pytest.raises(ValueError, match="logits"):
        check_onnx(model, processor, tmp_path)


@pytest.mark.parametrize("method", ["zegclip", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS[1:])])
def test_torch_export_takes_any_size(method, model, processor):
    tiny = build(method, model, processor)
    free = Dim.DYNAMIC
    ids = torch.tensor(processor(text=["cat", "dog", "b", "c", "d", "e"])["input_ids"])
    text = torch.export.export(
        TextGraph(tiny), (ids.reshape(3, 2, -1),), dynamic_shapes=({0: free, 1: free, 2: free},)
    )
    embeds = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
    vision = torch.export.export(
        VisionGraph(tiny),
        (torch.randn(2, 3, 71, 90), embeds),
        dynamic_shapes=({0: free, 2: free, 3: free}, {0: free}),
    )
    with torch.no_grad():
        longer = torch.tensor(processor(text=["a b c d e f g"])["input_ids"])[None]
        torch.testing.assert_close(text.module()(longer), TextGraph(tiny)(longer), atol=1e-5, rtol=0)
        for batch, height, width, count in ((1, 64, 40, 1), (3, 33, 130, 5)):
            pictures = torch.randn(batch, 3, height, width)
            embeds = torch.nn.functional.normalize(torch.randn(count, 32), dim=-1)
            actual, expected = vision.module()(pictures, embeds), tiny(pictures, class_embeds=embeds).logits
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_script_gives_the_pipelines_masks_without_torch_and_transformers(model_folder, tmp_path):
    folder = tmp_path / "onnx"
    assert main(["onnx", str(model_folder), str(folder)]) == 0
    # A picture that is larger than one window, of a size that no window divides.
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((101, 67), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "picture.png")
    labels = ["cat", "b c", "dog", "7"]
    segmenter = ZeroShotImageSegmentationPipeline(
        model=load_model(model_folder), processor=load_processor(model_folder)
    )
    masks = [np.asarray(result["mask"]) > 0 for result in segmenter(picture, candidate_labels=labels)]
    assert sum(mask.any() for mask in masks) > 1

    code = "import runpy, sys\nfor name in ('torch', 'transformers', 'zegclip'): sys.modules[name] = None\n"
    code += "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    words = [SCRIPT, folder, tmp_path / "picture.png", "--labels", ",".join(labels)]
    words += ["--output", tmp_path / "mask.png", "--overlay", tmp_path / "overlay.png"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True)
    ids = np.asarray(Image.open(tmp_path / "mask.png"))
    # Sums of floats in another order: a tie may go to the other name.
    assert (ids == np.argmax(masks, axis=0)).mean() > 0.999
    assert Image.open(tmp_path / "overlay.png").size == picture.size
    for label, mask in zip(labels, masks):
        assert f"{label}: {100 * mask.mean():.1f} %" in done.stdout


@pytest.mark.parametrize("built", ["naclip"], indirect=True)
def test_the_script_gives_the_masks_of_a_model_without_training(built, tmp_path, monkeypatch, capsys):
    tiny, processor, folder = built
    assert json.loads((folder / "zegclip.json").read_text())["score_function"] == "softmax"
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((101, 67), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "picture.png")
    segmenter = ZeroShotImageSegmentationPipeline(model=tiny, processor=processor)
    results = segmenter(picture, candidate_labels=[["cat", "7"], "b c", "dog"])
    masks = [np.asarray(result["mask"]) > 0 for result in results]
    assert sum(mask.any() for mask in masks) > 1

    def run(labels):
        words = [SCRIPT, folder, tmp_path / "picture.png", "--labels", labels, "--output", tmp_path / "mask.png"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    run("cat/7, b c, dog")
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == np.argmax(masks, axis=0)).mean() > 0.999
    assert capsys.readouterr().out.startswith("cat: ")
    with pytest.raises(SystemExit):  # it would win every pixel
        run("cat/7")
    assert "single class" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("do_resize", False), ("do_normalize", False), ("resample", 3)])
def test_a_processor_that_the_files_cannot_describe_is_refused(model, processor, name, value):
    setattr(processor.image_processor, name, value)
    with pytest.raises(ValueError, match=name):
        describe(model, processor)


def test_what_the_files_cannot_do_is_refused(model, processor, tmp_path):
    tiny = build("ldvc", model, processor)
    processor.prompt_templates = ["a picture of a {}"]
    with pytest.raises(ValueError, match="a picture of a"):  # text prompts need their template
        describe(tiny, processor)
    processor.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="padding_side"):
        describe(model, processor)
    with pytest.raises(ValueError, match="bfloat16"):
        export_onnx(model.bfloat16(), processor, tmp_path)


def test_a_failure_leaves_nothing(model_folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "place" / "onnx"
    config = json.loads((model_folder / "processor_config.json").read_text())
    config["image_processor"]["do_normalize"] = False
    (model_folder / "processor_config.json").write_text(json.dumps(config))

    def fails(folder):
        assert main(["onnx", str(model_folder), str(folder)]) == 1
        return capsys.readouterr().err

    assert "do_normalize" in fails(output)
    assert list(output.parent.iterdir()) == []
    assert str(model_folder) in fails(model_folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert "zegclip[onnx]" in fails(output)


def test_the_script_refuses_names_of_the_same_tokens(tmp_path):
    (tmp_path / "tokenizer.json").write_text(load_processor(DEFAULT_MODEL).tokenizer.backend_tokenizer.to_str())
    settings = {"prompt_templates": ["a {}", "the {}"], "context_length": 77, "pad_token_id": 0}
    encode_names = runpy.run_path(str(SCRIPT))["encode_names"]
    for first in ("Cat", "cat"):
        with pytest.raises(SystemExit, match=f"'{first}' and 'cat'"):
            encode_names(tmp_path, settings, [first, "tree", "cat"])


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_the_script_refuses_pictures_that_it_would_misread(tmp_path, monkeypatch, capsys, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "deep.tif")
    (tmp_path / "zegclip.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), str(tmp_path / "deep.tif"), "--labels", "cat"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "more than 8 bits" in capsys.readouterr().err


@pytest.mark.slow
def test_names_are_pooled_at_the_tokenizers_end_token(model, processor, tmp_path):
    """Where a word was added behind the end token, and the configuration is as OpenAI's."""
    processor.tokenizer.add_tokens(["zebra"])
    model.clip.text_model.resize_token_embeddings(len(processor.tokenizer))
    model.config.clip_config.text_config.vocab_size = len(processor.tokenizer)
    model.clip.text_model.eos_token_id = 2
    export_onnx(model, processor, tmp_path)
    assert compare(model, processor, tmp_path, ["zebra", "a zebra"], 1, (32, 32))["class_embeds"] < TOLERANCE
