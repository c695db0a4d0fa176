"""Parity with outputs of the official ZegCLIP code, forward and backward, on tiny random models."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from tiny_models import golden_files

from zegclip.processing.merging import merge_masks, merge_scores
from zegclip.processing.windows import predict_windows

FILES = [path for path in golden_files("zegclip_*.safetensors") if path.name != "zegclip_preprocess.safetensors"]
ELSEWHERE = {"scores", "target", "pred_masks"}  # compared by tests of their own
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request, make_golden):
    metadata, tensors = make_golden.read(request.param)
    meta = json.loads(metadata["meta"])
    official = meta["config"]
    config = {
        "clip_config": {
            "vision_config": {"num_attention_heads": official["backbone"]["heads"]},
            "text_config": {"num_attention_heads": official["text_encoder"]["transformer_heads"]},
        },
        "decoder_attention_heads": official["decode_head"]["num_heads"],
    }
    golden = make_golden(
        tensors,
        "sd.",
        "zegclip",
        config,
        text=tensors["input.text_embeddings_fp16"].float(),
        seen=official["base_class"],
        unseen=official["novel_class"],
        self_training=official["self_training"],
    )
    golden.meta = meta
    golden.image_size = official["decode_head"]["img_size"]
    return golden


def recorded(golden, class_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the model on the golden's pictures and return what happens inside under the golden's names."""
    vision, head = golden.model.clip.vision_model, golden.head
    blocks, layers = list(golden.encoder.base_layer.layers), list(head.layers)
    inputs = {f"block{index}_in": block for index, block in enumerate(blocks)}
    outputs = {f"block{index}_out": block for index, block in enumerate(blocks)}
    outputs |= {f"dec{index}_query": layer for index, layer in enumerate(layers)}
    outputs |= {"patch_conv": vision.embeddings.patch_embedding, "ln_pre": vision.pre_layrnorm}
    seen, output = golden.record(
        class_embeds,
        inputs | {"relation_concat": head.query_proj},
        outputs | {"prompt_norm_final": golden.encoder, "relation_queries": head.query_proj},
    )
    seen["prompt_norm_final"] = seen["prompt_norm_final"].last_hidden_state
    seen["ln_post"] = vision.post_layernorm(seen["prompt_norm_final"])
    seen["global_feature"] = output.image_embeds
    seen["patch_features"] = output.patch_embeds.permute(0, 3, 1, 2)
    seen[f"dec{len(layers)}_mask_logits"] = output.logits.flatten(2)
    size = (golden.image_size, golden.image_size)
    seen["pred_masks_upsampled"] = F.interpolate(output.logits, size=size, mode="bilinear", align_corners=False)
    seen["logits"] = output.logits
    return seen


def check_intermediates(golden, ours: dict[str, torch.Tensor], prefix: str) -> set[str]:
    """Compare all stored intermediates of one run, and return which those were."""
    last = golden.model.config.num_decoder_layers - 1
    # What the official decoder also computes and nobody reads: earlier layers' scores, the last layer's queries.
    unread = re.compile(rf"dec(?!{last})\d+_mask_logits|dec{last}_query")
    compared = set()
    for name in golden.tensors:
        key = name.removeprefix(prefix)
        if key == name or key not in ours:
            assert key == name or unread.fullmatch(key) or key in ELSEWHERE or key.startswith(("loss_", "decode.")), (
                key
            )
            continue
        mine, official = ours[key].detach(), golden[name]
        if key in ("prompt_norm_final", "ln_post") and mine.shape != official.shape:
            # We drop the prompts before the last norms: nothing reads them.
            count = official.shape[1] - mine.shape[1]
            official = torch.cat([official[:, :1], official[:, 1 + count :]], dim=1)
        golden.assert_close(mine, official)
        compared.add(key)
    return compared


@torch.no_grad()
def test_forward(golden):
    golden.model.eval()
    ours = recorded(golden, golden.text)
    compared = check_intermediates(golden, ours, "eval.")
    assert {"global_feature", "patch_features", "relation_queries", "prompt_norm_final", "block0_in"} - compared <= {
        "prompt_norm_final"  # shallow prompts have none
    }
    offset = torch.zeros(len(golden.text))
    offset[golden.seen] = golden.meta["eval_seen_offset"]
    scores = ours["pred_masks_upsampled"].sigmoid() - offset[:, None, None]
    size = golden["input.image"].shape[-2:]
    golden.assert_close(F.interpolate(scores, size=size, mode="bilinear", align_corners=False), golden["eval.scores"])


@torch.no_grad()
def test_text_tower(golden):
    ours = golden.model.get_class_embeds(golden["textenc.tokens"].long())
    golden.assert_close(ours, golden["textenc.normalized_embeddings"])


@torch.no_grad()
def test_sliding_window(golden):
    if "slide.image" not in golden:
        pytest.skip("this file has no sliding window")
    golden.model.eval()
    image = golden["slide.image"]
    crop, stride = (golden.meta["config"]["test_cfg"][key][0] for key in ("crop_size", "stride"))
    windows = predict_windows(golden.model, image, golden.text, window_size=crop, stride=stride, batch_size=2)
    rule = {"seen_ids": golden.seen, "seen_offset": golden.meta["eval_seen_offset"]}
    golden.assert_close(merge_scores(windows, tuple(image.shape[-2:]), **rule), golden["slide.scores"][0])
    target = tuple(golden["slide.argmax"].shape)
    golden.assert_close(merge_scores(windows, target, **rule), golden["slide.scores_resized"][0])
    masks, _ = merge_masks(windows, target, **rule)
    torch.testing.assert_close(masks, golden["slide.argmax"].long(), atol=0, rtol=0)


def test_train_forward(golden):
    upsampled, targets, losses = golden.train_step(golden["input.label"])
    golden.assert_close(upsampled.detach(), golden["train.pred_masks"])
    torch.testing.assert_close(targets, golden["train.target"][:, 0].long(), atol=0, rtol=0)
    check_losses(golden, losses, "train")
    compared = check_intermediates(golden, recorded(golden, golden.train_class_embeds()), "train.")
    assert {"global_feature", "relation_queries"} <= compared


def check_losses(golden, losses: dict[str, torch.Tensor], prefix: str) -> None:
    config = golden.model.config
    official = {name: golden[f"{prefix}.{name}"][0] for name in ("loss_mask_unweighted", "loss_dice_unweighted")}
    expected = {
        "loss_focal": official["loss_mask_unweighted"] * config.focal_weight,
        "loss_dice": official["loss_dice_unweighted"] * config.dice_weight,
    }
    for name, value in losses.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=LOSS_TOLERANCE, atol=0)
    total = sum(losses.values()).detach()
    torch.testing.assert_close(total, golden[f"{prefix}.loss_total"][0], rtol=LOSS_TOLERANCE, atol=0)


@pytest.mark.parametrize("edge", ["edge_one_empty", "edge_all_ignore"])
def test_edge_labels(golden, edge):
    if f"{edge}.label" not in golden:
        pytest.skip("this file has no such labels")
    _, targets, losses = golden.train_step(golden[f"{edge}.label"])
    torch.testing.assert_close(targets, golden[f"{edge}.target"][:, 0].long(), atol=0, rtol=0)
    check_losses(golden, losses, edge)


def test_gradients(golden):
    ours = golden.gradients()
    official = {name.removeprefix("grad."): golden[name] for name in golden.tensors if name.startswith("grad.")}
    assert ours.keys() == official.keys()
    for name, expected in official.items():
        if golden.is_noise(name):
            # Both sides are rounding noise of what the weight's gradient is made of.
            noise = 1e-6 * max(1.0, official[name.replace("bias", "weight")].abs().max().item())
            assert ours[name].abs().max() < noise, name
            assert expected.abs().max() < noise, name
        else:
            error = (ours[name] - expected).norm()
            assert error <= GRADIENT_TOLERANCE * expected.norm(), f"{name}: {error}"
