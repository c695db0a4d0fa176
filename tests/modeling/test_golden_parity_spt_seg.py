"""Parity with outputs of the official SPT-SEG code, forward and backward, on tiny random models."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from tiny_models import golden_files

from zegclip.processing.merging import merge_masks, merge_scores
from zegclip.processing.windows import predict_windows

FILES = golden_files("spt_*.safetensors")
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5  # of the largest entry
ELSEWHERE = {"semantic_scores", "label_used", "total_loss"}  # compared by tests of their own


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request, make_golden):
    texts, tensors = make_golden.read(request.param)
    official = {
        key: json.loads(texts[key])
        for key in ("heads", "img", "seen", "n_cls", "st", "stride", "dec", "trainable", "trainable_without_grad")
    }
    # The official decoder always has 8 heads, and its tiny text tower 4.
    heads = {"num_attention_heads": official["heads"]}
    config = {"clip_config": {"vision_config": heads, "text_config": {"num_attention_heads": 4}}}
    seen = official["seen"]
    golden = make_golden(
        tensors,
        "state_dict.",
        "spt-seg",
        config,
        text=tensors["text.embeddings"],
        seen=seen,
        unseen=[index for index in range(official["n_cls"]) if index not in seen],
        self_training=official["st"],
    )
    golden.meta = official
    return golden


def recorded(golden, class_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the model on the golden's pictures and return what happens inside under the golden's names."""
    head = golden.head
    blocks, layers = list(golden.encoder.base_layer.layers), [*head.layers, head.mask_scores]
    inputs = {f"resblock.{index}.in": block for index, block in enumerate(blocks)}
    outputs = {f"resblock.{index}.out": block for index, block in enumerate(blocks)}
    for index, layer in enumerate(layers):
        outputs[f"dec.{index}.mask_logits" if layer is head.mask_scores else f"dec.{index}.query_out"] = layer
        outputs[f"dec.{index}.filtered_tokens"] = layer.mixing
        outputs[f"dec.{index}.low"] = layer.mixing.low_proj
    seen, output = golden.record(
        class_embeds,
        inputs | {"query_in": head.query_proj},
        outputs
        | {"ln_pre": golden.model.clip.vision_model.pre_layrnorm, "prompt_norm.1": golden.encoder}
        | {"query0": head.query_proj},
    )

    height, width = output.logits.shape[-2:]
    seen["prompt_norm.1"] = seen["prompt_norm.1"].last_hidden_state
    for index in range(2):
        # By how much a layer's incoming patches differ from those that came out before it.
        before = seen["ln_pre"] if index == 0 else seen[f"resblock.{index - 1}.out"]
        patches = slice(-height * width, None)
        seen[f"spectral.{index}"] = seen[f"resblock.{index}.in"][:, patches] - before[:, patches]
    seen["global_feature"] = output.image_embeds
    seen["patch_features"] = output.patch_embeds.permute(0, 3, 1, 2)
    for index, layer in enumerate(layers):
        seen[f"dec.{index}.low"] = seen[f"dec.{index}.low"].unflatten(1, (height, width))
        size = layer.mixing.window_size
        padded = F.pad(output.patch_embeds, (0, 0, 0, -width % size, 0, -height % size))
        seen[f"dec.{index}.high"] = layer.mixing._mix_windows(padded)
    size = golden["input.image"].shape[-2:]
    seen["pred_masks"] = F.interpolate(output.logits, size=size, mode="bilinear", align_corners=False)
    return seen


def check_intermediates(golden, ours: dict[str, torch.Tensor], prefix: str) -> set[str]:
    """Compare all stored intermediates of one run, and return which those were."""
    last = golden.meta["dec"] - 1
    # What the official code also computes and nobody reads, or reads only to compute what is compared.
    unread = re.compile(rf"dec\.(?!{last}\.)\d+\.mask_logits|dec\.{last}\.query_out|prompt_norm\.0")
    compared = set()
    for name in golden.tensors:
        key = name.removeprefix(prefix)
        if key == name:
            continue
        if key not in ours:
            assert unread.fullmatch(key) or key in ELSEWHERE or key.startswith("decode."), key
            continue
        mine, official = ours[key].detach(), golden[name]
        if key == "prompt_norm.1":
            # We drop the prompts before the last norms: nothing reads them.
            official = torch.cat([official[:, :1], official[:, 1 - mine.shape[1] :]], dim=1)
        elif key.endswith(".low"):
            # The official low path also asks for the padding, and cuts it off later.
            official = official[:, : mine.shape[1], : mine.shape[2]]
        elif key == "pred_masks":
            mine = mine[: len(official)]  # the file in this repository has the first picture's only
        golden.assert_close(mine, official)
        compared.add(key)
    return compared


@torch.no_grad()
def test_forward(golden):
    golden.model.eval()
    compared = check_intermediates(golden, recorded(golden, golden.text), "eval.")
    last = golden.meta["dec"] - 1
    assert compared >= {"patch_features", "global_feature", "query_in", "query0", f"dec.{last}.mask_logits"}


def check_scores(golden, image: torch.Tensor, official: torch.Tensor, stride: int) -> None:
    """Compare the scores of all classes, and the best class."""
    golden.model.eval()
    windows = predict_windows(
        golden.model, image, golden.text, window_size=golden.meta["img"], stride=stride, batch_size=2
    )
    rule = {"seen_ids": golden.seen, "seen_offset": 0.0 if golden.self_training else 0.1}
    golden.assert_close(merge_scores(windows, **rule), official)
    masks, _ = merge_masks(windows, **rule)
    # A patch behind a closed gate has the same score for every class.
    assert (official.gather(0, masks[None])[0] >= official.amax(dim=0) - 1e-5).all()


@torch.no_grad()
def test_scores_and_masks(golden):
    # The file in this repository has the first picture's only.
    for image, official in zip(golden["input.image"].split(1), golden["eval.semantic_scores"]):
        check_scores(golden, image, official, stride=golden.meta["img"])


@torch.no_grad()
def test_text_tower(golden):
    golden.assert_close(golden.model.get_class_embeds(golden["input.token_ids"]), golden["text.embeddings"])


@torch.no_grad()
def test_sliding_window(golden):
    if "slide.image" not in golden:
        pytest.skip("this file has no sliding window")
    check_scores(golden, golden["slide.image"], golden["slide.scores"][0], stride=golden.meta["stride"])


def test_train_forward(golden):
    upsampled, targets, losses = golden.train_step(golden["input.label"])
    official = golden["train.pred_masks"]
    golden.assert_close(upsampled.detach()[: len(official)], official)
    torch.testing.assert_close(targets, golden["train.label_used"][:, 0].long(), atol=0, rtol=0)
    expected = {"loss_focal": golden["train.decode.loss_mask"], "loss_ssim": golden["train.decode.loss_ssim"]}
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value.detach(), expected[name][0], rtol=LOSS_TOLERANCE, atol=0)
    total = sum(losses.values()).detach()
    torch.testing.assert_close(total, golden["train.total_loss"][0], rtol=LOSS_TOLERANCE, atol=0)
    compared = check_intermediates(golden, recorded(golden, golden.train_class_embeds()), "train.")
    assert compared >= {"query0", f"dec.{golden.meta['dec'] - 1}.mask_logits", "pred_masks"}


def test_gradients(golden):
    ours = golden.gradients()
    official = {name.removeprefix("grad."): golden[name] for name in golden.tensors if name.startswith("grad.")}
    # What the official training never reaches is not there at all in our model.
    assert set(official) == set(golden.meta["trainable"]) - set(golden.meta["trainable_without_grad"])
    assert ours.keys() == official.keys()
    for name, expected in official.items():
        error = (ours[name] - expected).abs().max()
        assert error <= GRADIENT_TOLERANCE * expected.abs().max(), f"{name}: {error}"  # 0 behind closed gates
