"""Other CLIPs than ViT-B/16, by configuration alone: the sizes of published ones, and a small odd one end to end."""

import math
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipConfig, pipeline

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.loading import load_base
from zegclip.training.train import train

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml")
# "a photo of a" by CLIP's tokenizer, which all of these share.
TEMPLATE_IDS = [49406, 320, 1125, 539, 320, 49407]


def clip_config(patch, vision, text, projection_dim, image_size=224, hidden_act="quick_gelu"):
    """`vision` and `text`: width, layers and heads of a tower, whose feed-forward layers are four times as wide."""
    towers = []
    for sizes in (vision, text):
        tower = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), sizes))
        towers.append({**tower, "intermediate_size": 4 * sizes[0], "hidden_act": hidden_act})
    return CLIPConfig(
        projection_dim=projection_dim,
        vision_config={**towers[0], "patch_size": patch, "image_size": image_size},
        text_config={**towers[1], "vocab_size": 49408, "max_position_embeddings": 77},
    )


# MetaCLIP's are OpenAI's sizes, and H/14; LAION's differ from these in the activation alone.
PUBLISHED = {
    "B/32": clip_config(32, (768, 12, 12), (512, 12, 8), 512),
    "B/16": clip_config(16, (768, 12, 12), (512, 12, 8), 512),
    "L/14": clip_config(14, (1024, 24, 16), (768, 12, 12), 768),
    "L/14-336": clip_config(14, (1024, 24, 16), (768, 12, 12), 768, image_size=336),
    "TinyCLIP 8M-16": clip_config(16, (256, 10, 4), (256, 3, 4), 512),
    "TinyCLIP 39M-16": clip_config(16, (512, 12, 8), (512, 6, 8), 512),
    "TinyCLIP 40M-32": clip_config(32, (512, 12, 8), (512, 6, 8), 512),
    "TinyCLIP 61M-32": clip_config(32, (640, 12, 10), (512, 9, 8), 512),
    "MetaCLIP H/14": clip_config(14, (1280, 32, 16), (1024, 24, 16), 1024),
}


def fields_of(method, config):
    """What a method asks of a configuration; only the layers that LDVC reads depend on the CLIP."""
    layers = config.vision_config.num_hidden_layers
    return {
        "zegclip": {},
        "spectral": {"decode_head_type": "spectral", "dice_weight": 0, "ssim_weight": 1},
        "consensus": {
            "decode_head_type": "consensus",
            "num_decoder_layers": 2,
            "decoder_window_size": 4,
            "out_indices": [2 * layers // 3 - 1, layers - 1],
        },
    }[method]


def trained_parameters(method, config, crop_size, num_tokens):
    """What is trained, from the sizes of the CLIP alone."""
    vision, text, dim = config.vision_config, config.text_config, config.projection_dim
    width, ffn, side, heads = vision.hidden_size, 2048, math.ceil(crop_size / vision.patch_size), 8
    low = dim // heads * 7
    high = dim - low
    norm, linear = 2 * dim, dim * dim + dim
    feed_forward = dim * ffn + ffn + ffn * dim + dim
    prompts = vision.num_hidden_layers * num_tokens * width + width * width + width + 2 * width
    mixing = dim * 3 * high + dim * low + dim * 2 * low + low * low + low
    own = {
        "zegclip": 2 * (4 * linear + feed_forward + 2 * norm) + 2 * linear,
        "spectral": side * (side // 2 + 1) * width * 2
        + 3 * (dim + dim * dim + mixing)
        + 2 * (linear + feed_forward + 2 * norm),
        "consensus": text.num_hidden_layers * len(TEMPLATE_IDS) * text.hidden_size
        + 2 * (width * dim + dim + 8 * linear + feed_forward + 3 * norm),
    }
    return prompts + 2 * dim * dim + dim + own[method]


def on_the_meta_device(method, config, crop_size, num_tokens):
    """A model and its prompts: shapes without numbers. Also class embeddings, which come from the bare model."""
    fields = {"num_tokens": num_tokens}
    if method == "spectral":
        fields |= {
            "spectral_prompt": True,
            "spectral_grid_size": math.ceil(crop_size / config.vision_config.patch_size),
        }
    elif method == "consensus":
        fields |= {"text_prompts": "whole", "text_prompt_ids": TEMPLATE_IDS}
    with torch.device("meta"):
        model = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=config, **fields_of(method, config)))
        # Whether names stand behind the adapter's template cannot be asked where there are no numbers.
        class_embeds = model.get_class_embeds(torch.zeros(5, 9, dtype=torch.long))
        return get_peft_model(model, DeepPromptConfig(**fields)), class_embeds


def count_trained(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("method", ["zegclip", "spectral", "consensus"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_trained_and_segments(name, method):
    config, crop_size = PUBLISHED[name], 512
    model, class_embeds = on_the_meta_device(method, config, crop_size, 10)
    assert count_trained(model) == trained_parameters(method, config, crop_size, 10)
    logits = model(pixel_values=torch.zeros(2, 3, 512, 375, device="meta"), class_embeds=class_embeds).logits
    patch = config.vision_config.patch_size
    assert logits.shape == (2, 5, math.ceil(512 / patch), math.ceil(375 / patch))


@pytest.mark.parametrize(
    ("method", "num_tokens", "expected"),
    [
        # What gets a gradient in the official code; its published 13.8 M and 14.6 M count weights that never run or
        # learn.
        ("zegclip", 10, 8_039_168),
        ("zegclip", 100, 8_868_608),
        # The paper's 11 million: vision prompts, six text prompts a layer, descriptor, two layers.
        ("consensus", 100, 11_270_912),
        ("consensus", 40, 10_717_952),
    ],
)
def test_trained_parameters_at_full_size(method, num_tokens, expected):
    model, _ = on_the_meta_device(method, PUBLISHED["B/16"], 512, num_tokens)
    assert count_trained(model) == expected == trained_parameters(method, PUBLISHED["B/16"], 512, num_tokens)


@pytest.fixture
def odd_clip(tokenizer, tmp_path):
    """A plain CLIP with its tokenizer, nothing of which is like ViT-B/16."""
    torch.manual_seed(0)
    config = clip_config(14, (48, 3, 3), (40, 2, 2), 24, image_size=42, hidden_act="gelu")
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.max_position_embeddings = 32
    for name in ("bos", "eos", "pad"):
        setattr(config.text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


OWN_WORDS = {
    "zegclip": [],
    "spectral": ["--decode_head_type", "spectral", "--decoder_low_frequency_heads", "2", "--spectral_prompt", "true"],
    "consensus": [
        "--decode_head_type", "consensus", "--num_decoder_layers", "2", "--out_indices", "0", "2",
        "--decoder_window_size", "2", "--decoder_top_k", "3", "--text_prompts", "whole",
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", OWN_WORDS)
def test_a_small_odd_one_is_trained_saved_and_used(odd_clip, tmp_path, method):
    """Unequal towers, patches of 14, another activation, and a joint width that is neither tower's."""
    run = tmp_path / "run"
    words = [
        CONFIG, "--model", str(odd_clip), "--output_dir", str(run), "--use_cpu", "--max_steps", "2",
        "--num_train_pictures", "4", "--num_eval_pictures", "1", "--total_train_batch_size", "2",
        # 60 is no multiple of 14, 56 is.
        "--image_size", "84", "--crop_size", "60", "--window_size", "56", "--window_stride", "56",
        "--decode_head_init", "default", "--decoder_attention_heads", "3", "--decoder_ffn_dim", "20",
        "--num_prompt_tokens", "2", "--learning_rate", "0.01", "--warmup_steps", "0", *OWN_WORDS[method],
    ]  # fmt: skip
    metrics = train(words)
    assert 0 <= metrics["eval_pacc"] <= 100

    model = ZegClipForSemanticSegmentation.from_pretrained(run).eval()
    before, after = CLIPModel.from_pretrained(odd_clip).state_dict(), model.clip.state_dict()
    layers = ("vision_model.encoder.", "text_model.encoder.")
    for name, tensor in before.items():
        other = name
        for layer in layers:
            if name not in after:
                other = other.replace(layer, f"{layer}base_layer.")
        assert torch.equal(tensor, after[other]), name

    processor = ZegClipProcessor.from_pretrained(run)
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    inputs = processor(images=picture, text=["cat", "tree", "sky"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert inputs["pixel_values"].shape[-2:] == (84, 108)
    assert logits.shape == (1, 3, 6, 8)
    assert logits.isfinite().all()

    segmenter = pipeline("zero-shot-image-segmentation", model=str(run))
    masks = segmenter(picture, candidate_labels=["cat", "tree", "sky"])
    covered = sum(sum(bool(value) for value in mask["mask"].getdata()) for mask in masks)
    assert covered == 90 * 70  # each pixel has one of the names


def test_what_is_no_clip_is_refused(tmp_path):
    SiglipConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*siglip"):
        load_base(tmp_path, {})
