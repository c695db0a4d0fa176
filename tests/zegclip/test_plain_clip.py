"""Any CLIP as a model that segments without training: the ways to it, what is kept, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    pipeline,
)
from transformers.image_utils import OPENAI_CLIP_MEAN

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.commands.main import main
from zegclip.loading import load_model, load_processor
from zegclip.plain_clip import from_clip
from zegclip.processing.pipeline import TASK
from zegclip.sharing.publishing import export

LABELS = ["cat", "tree", "b"]


@pytest.fixture
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture
def clip(model):
    """A plain CLIP whose names differ enough that several win pixels."""
    config = copy.deepcopy(model.config.clip_config)
    config.text_config.max_position_embeddings = 77  # some of the 80 templates are long to the letters' tokenizer
    torch.manual_seed(0)
    clip = CLIPModel(config).eval()
    with torch.no_grad():
        clip.text_model.embeddings.token_embedding.weight.mul_(20)
    return clip


@pytest.fixture
def clip_processor(tokenizer):
    """As published with CLIPs: it cuts the middle out, and its numbers are not the default."""
    tokenizer.model_max_length = 77
    return CLIPProcessor(CLIPImageProcessorPil(image_mean=[0.4, 0.5, 0.6], do_center_crop=True), tokenizer)


@pytest.fixture
def folder(clip, clip_processor, tmp_path):
    return save(tmp_path / "clip", clip, clip_processor)


def save(folder, clip, clip_processor):
    clip.save_pretrained(folder)
    clip_processor.save_pretrained(folder)
    return folder


def masks(segmenter, picture, labels=LABELS, **options):
    options = {"hypothesis_template": "the {}"} | options  # for the time of 80 templates
    results = segmenter(picture, candidate_labels=labels, **options)
    return np.stack([np.asarray(result["mask"]) > 0 for result in results]), [result["score"] for result in results]


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


def test_all_ways_lead_to_the_same_masks(clip, clip_processor, folder, noise):
    own = {"hypothesis_template": None}  # the model's 80
    found = masks(pipeline(TASK, model=str(folder)), noise, **own)
    assert found[0].any(axis=(1, 2)).sum() > 1
    assert_same(masks(pipeline(TASK, model=clip, processor=clip_processor), noise, **own), found)
    model, processor = load_model(folder), load_processor(folder)
    assert_same(masks(pipeline(TASK, model=model, processor=processor), noise, **own), found)
    assert processor.image_processor.image_mean == (0.4, 0.5, 0.6)
    assert model.config.dense_attention == "naclip"
    # By hand, where one window covers the picture.
    square = noise.resize((60, 60))
    inputs = processor(images=square, text=LABELS, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    [ids] = processor.post_process_semantic_segmentation(outputs, [(60, 60)])
    by_hand = np.stack([ids.numpy() == index for index in range(len(LABELS))])
    segmenter = pipeline(TASK, model=str(folder))
    for side in (None, max(inputs["pixel_values"].shape[-2:])):
        whole, _ = masks(segmenter, square, window_size=side, **own)
        np.testing.assert_array_equal(by_hand, whole)


def without_architectures(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key[0] != "a"}))


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("edit", [without_architectures, as_pickle])
def test_other_forms_of_folders(folder, noise, edit):
    expected = masks(pipeline(TASK, model=str(folder)), noise)
    edit(folder)
    assert_same(masks(pipeline(TASK, model=str(folder)), noise), expected)
    segmenter = pipeline(TASK, model=load_model(folder), processor=load_processor(folder))
    assert_same(masks(segmenter, noise), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(clip, clip_processor, folder, noise, tmp_path, dtype):
    expected, _ = masks(pipeline(TASK, model=str(folder)), noise)
    asked_for = pipeline(TASK, model=str(folder), dtype=dtype)
    stored = save(tmp_path / "half", clip.to(dtype), clip_processor)
    loaded = pipeline(TASK, model=load_model(stored), processor=load_processor(stored))
    for segmenter in (asked_for, pipeline(TASK, model=str(stored)), loaded):
        assert segmenter.model.dtype == dtype
        assert (masks(segmenter, noise)[0] == expected).mean() > 0.95


def test_the_clip_stays_as_it_is_and_its_attention_is_kept(folder):
    clip = CLIPModel.from_pretrained(folder, attn_implementation="eager")
    before = clip.config.to_dict()
    ours, _ = from_clip(clip, None)
    assert clip.config.to_dict() == before
    assert clip.config._attn_implementation == clip.vision_model.config._attn_implementation == "eager"
    assert ours.clip.vision_model.config._attn_implementation == "eager"
    assert ours.clip.visual_projection.weight.data_ptr() == clip.visual_projection.weight.data_ptr()


@pytest.mark.parametrize(("image_size", "patch_size"), [(30, 8), (20, 16), (70, 14)])
def test_sides_that_patches_do_not_divide(clip, clip_processor, noise, tmp_path, image_size, patch_size):
    config = clip.config.to_dict()
    config["vision_config"] |= {"image_size": image_size, "patch_size": patch_size}
    odd = CLIPModel(type(clip.config).from_dict(config)).eval()
    segmenter = pipeline(TASK, model=str(save(tmp_path / "odd", odd, clip_processor)))
    settings = segmenter.processor.image_processor
    assert settings.window_size == 14 * patch_size
    assert settings.window_size % patch_size == settings.window_stride % patch_size == 0
    covered, _ = masks(segmenter, noise)
    assert (covered.sum(axis=0) == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 300)])
def test_pictures_and_windows_below_one_patch(folder, noise, size):
    segmenter = pipeline(TASK, model=str(folder))
    for options in ({}, {"refine": True}, {"window_size": 7, "window_stride": 7, "batch_size": 500}):
        covered, scores = masks(segmenter, Image.new("RGB", size[::-1], "red"), **options)
        assert covered.shape[1:] == size
        assert (covered.sum(axis=0) == 1).all()
        assert all(0 <= score <= 1 for score in scores)


def test_a_single_label_competes_with_the_background_unless_told_otherwise(folder, noise):
    segmenter = pipeline(TASK, model=str(folder))
    alone, scores = masks(segmenter, noise, ["cat"], background=False)
    assert alone.all()
    assert scores == [1.0]
    for labels in (["cat"], [["cat", "b"]]):
        assert not masks(segmenter, noise, labels)[0].all()
    usual, _ = masks(segmenter, noise, ["cat"])
    asked_for, _ = masks(segmenter, noise, ["cat"], background=True)
    np.testing.assert_array_equal(usual, asked_for)
    own, _ = masks(segmenter, noise, ["cat"], background=["tree"])
    np.testing.assert_array_equal(own, masks(segmenter, noise, ["cat", "tree"])[0][:1])
    # A usual word that is a label competes once.
    assert masks(segmenter, noise, ["Sky", "b"], background=True)[0].shape[0] == 2


def test_a_threshold_is_one_of_the_softmax(folder, noise):
    segmenter = pipeline(TASK, model=str(folder))
    every, scores = masks(segmenter, noise)
    some, higher = masks(segmenter, noise, threshold=max(scores))  # a mean
    assert 0 < some.sum() < every.sum()
    assert not (some & ~every).any()
    assert max(higher) > max(scores)


def test_permuted_names_and_synonyms(folder, noise):
    segmenter = pipeline(TASK, model=str(folder))
    one, _ = masks(segmenter, noise, [["cat", "b"], "tree", "7"])
    other, _ = masks(segmenter, noise, ["7", ["b", "cat"], "tree"])
    assert (other[[1, 2, 0]] == one).mean() > 0.999  # ties
    as_text, _ = masks(segmenter, noise, "cat/b, tree, 7")
    np.testing.assert_array_equal(as_text, one)


def lacking(part):
    def edit(folder):
        path = folder / "model.safetensors"
        kept = {key: tensor for key, tensor in load_file(path).items() if not key.startswith(part)}
        save_file(kept, path, metadata={"format": "pt"})

    return edit


def image_tower_alone(folder):
    CLIPVisionModel(CLIPModel.from_pretrained(folder).config.vision_config).save_pretrained(folder)


def siglip(folder):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config=tower | {"image_size": 16, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)


def lora(folder):
    adapted = get_peft_model(CLIPModel.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder / "lora")
    return folder / "lora"


@pytest.mark.parametrize(
    ("edit", "in_pipeline", "in_loader"),
    [
        (lacking("text_model"), "no weights for text_model", "no weights for clip.text_model"),
        (lacking("vision_model"), "no weights for vision_model", "no weights for clip.vision_model"),
        (lacking("visual_projection"), "visual_projection", "visual_projection"),
        (image_tower_alone, "needs a CLIP, such as .* not a CLIPVisionModel", "'clip_vision_model'.*such as openai"),
        (siglip, "needs a CLIP, such as openai/.* not a SiglipModel", "'siglip'.* such as openai/"),
        (lora, "merged", "decode_head"),
    ],
)
def test_what_is_no_whole_clip_is_refused(folder, noise, tmp_path, capsys, edit, in_pipeline, in_loader):
    folder = edit(folder) or folder
    with pytest.raises(ValueError, match=in_pipeline) as caught:
        pipeline(TASK, model=str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=in_loader) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    noise.save(tmp_path / "picture.png")
    capsys.readouterr()
    arguments = ["--labels", "cat, tree", "--model", folder, "--output", tmp_path / "results"]
    assert main([str(word) for word in ("segment", tmp_path / "picture.png", *arguments)]) == 1
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert not (tmp_path / "results").exists()


def test_models_in_memory_that_are_no_whole_clip_are_refused(clip, clip_processor, folder):
    other = SiglipModel(SiglipConfig(
        text_config={"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "vocab_size": 100},
        vision_config={"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2},
    ))  # fmt: skip
    with pytest.raises(ValueError, match=r"such as openai/.* not a SiglipModel"):
        pipeline(TASK, model=other, processor=clip_processor)
    adapted = CLIPModel.from_pretrained(folder)
    adapted.add_adapter(LoraConfig(target_modules=["q_proj"]))
    wrapped = get_peft_model(CLIPModel.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    for refused in (adapted, wrapped):
        with pytest.raises(ValueError, match="adapters are merged"):
            pipeline(TASK, model=refused, processor=clip_processor)
    # What was put in later is not missing.
    changed = wrapped.merge_and_unload()
    changed.visual_projection = torch.nn.Linear(32, 32, bias=False)
    pipeline(TASK, model=changed, processor=clip_processor)


@pytest.mark.parametrize(
    ("labels", "options", "named"),
    [
        ("cat/b, b", {}, "'b'"),
        ("cat/, tree", {}, "blank"),
        ([["cat", "b"], "b"], {}, "'b'"),
        ([["cat"], []], {}, "no name"),
        (["cat", "sky"], {"background": ["sky", "tree"]}, "'sky'"),
        (["cat"], {"background": ["Cat"]}, "same tokens"),
        (["cat"], {"background": []}, "empty"),
        (["cat", "b"], {"training_free_weight": 0.5}, "training-free already"),
        (["cat", "b"], {"training_free_weight": 1.5}, "between 0 and 1"),
        (["cat", "b"], {"training_free_weight": float("nan")}, "between 0 and 1"),
    ],
)
def test_bad_arguments(folder, noise, labels, options, named):
    segmenter = pipeline(TASK, model=str(folder))
    with pytest.raises(ValueError, match=named) as caught:
        segmenter(noise, candidate_labels=labels, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "more", "named"),
    [
        ("cat/b, b", [], "'b'"),
        ("cat/, tree", [], "blank"),
        ("cat, sky", ["--background-words", "sky, tree"], "'sky'"),
        ("cat, b", ["--training-free-weight", "0.5"], "training-free already"),
    ],
)
def test_bad_arguments_of_the_command(folder, noise, tmp_path, capsys, labels, more, named):
    noise.save(tmp_path / "picture.png")
    arguments = ["--labels", labels, "--model", folder, "--output", tmp_path / "results", *more]
    assert main([str(word) for word in ("segment", tmp_path / "picture.png", *arguments)]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("zegclip: ")
    assert named in message


def test_statistics_that_cannot_be_read_are_not_replaced(folder):
    """OpenAI's would silently take their place."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Unknown", "image_mean": [0.1, 0.2, 0.3]}'
    )
    with pytest.raises(ValueError, match="processor"):
        load_processor(folder)
    (folder / "preprocessor_config.json").unlink()
    assert load_processor(folder).image_processor.image_mean == tuple(OPENAI_CLIP_MEAN)


@pytest.mark.parametrize("trained", [False, True])
def test_an_exported_model_has_the_sizes_of_its_kind(folder, trained, tmp_path, capsys):
    """Those of ZegCLIP for what is trained on a plain CLIP, NACLIP's for the CLIP itself."""
    if trained:
        model = ZegClipForSemanticSegmentation.from_pretrained(folder, num_decoder_layers=1)
        model.add_adapter(DeepPromptConfig(num_tokens=2))
        export(model, tmp_path / "out")
    else:
        assert main(["export", str(folder), str(tmp_path / "out")]) == 0
    found = ZegClipProcessor.from_pretrained(tmp_path / "out").image_processor
    expected = load_processor(folder, for_training=trained).image_processor
    for name in ("size", "window_size", "window_stride", "image_mean", "image_std"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.window_size == 512) == trained


def test_a_folder_with_a_tokenizer_alone_and_a_clip_from_it(clip, tokenizer, noise, tmp_path):
    tokenizer.model_max_length = 77
    save(tmp_path, clip, tokenizer)
    expected = pipeline(TASK, model=load_model(tmp_path), processor=load_processor(tmp_path))
    for model in (str(tmp_path), CLIPModel.from_pretrained(tmp_path)):
        found = pipeline(TASK, model=model)(noise, candidate_labels=LABELS)
        assert found == expected(noise, candidate_labels=LABELS)
    with pytest.raises(ValueError, match="processor="):
        pipeline(TASK, model=clip)
    with pytest.raises(ValueError, match="load_processor"):
        ZegClipProcessor(CLIPImageProcessorPil(), tokenizer)
