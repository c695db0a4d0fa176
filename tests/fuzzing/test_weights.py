"""Models, adapters and checkpoints of every kind: what loads works as its tensors say, all else is one sentence."""

import json
import math
import os
import shutil
import struct
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from zegclip import DeepPromptConfig
from zegclip.loading import load_adapter_into, load_base, load_model

pytestmark = pytest.mark.thorough

VALUES = st.sampled_from([math.nan, math.inf, -math.inf, 1e38, -1e30])
EDITS = ("value", "shape", "empty", "scalar", "missing", "extra", "renamed", "type", "swapped", "none")
BYTES = ("cut", "changed", "header", "garbage", "other name", "folder", "dangling", "link")


@st.composite
def edits(draw, names):
    """Draw `(what, name of a tensor, seed or value)`."""
    what = draw(st.sampled_from([*EDITS, *BYTES]))
    return what, draw(st.sampled_from(sorted(names))), draw(VALUES) if what == "value" else draw(st.integers(0, 10**6))


def edit_tensors(tensors, edit):
    """Change tensors in memory; returns whether they still say the same."""
    what, name, seed = edit
    if what == "value":
        tensors[name] = tensors[name].clone().float()
        tensors[name].view(-1)[-1] = seed
    elif what == "shape":
        tensors[name] = torch.zeros([side + seed % 3 - 1 for side in tensors[name].shape] + [2] * (seed % 2))
    elif what == "empty":
        tensors[name] = torch.zeros(0)
    elif what == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif what == "missing":
        del tensors[name]
    elif what == "extra":
        tensors[f"{name}.more" if seed % 2 else "something"] = torch.zeros(2)
    elif what == "renamed":
        tensors[name[::-1]] = tensors.pop(name)
    elif what == "type":
        kinds = [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64]
        tensors[name] = tensors[name].to(kinds[seed % 6])
    elif what == "swapped":
        tensors[name] = tensors[name].flip(0) if tensors[name].ndim else tensors[name]
    return what in ("none", "extra")


def edit_bytes(path, edit):
    """Change a file; returns whether it still says the same."""
    what, _, seed = edit
    content = bytearray(path.read_bytes())
    if what == "cut":
        path.write_bytes(content[: seed % len(content)])
    elif what == "changed":
        for place in range(seed % 9 + 1):
            content[(seed * (place + 1) * 7919) % len(content)] = seed % 256
        path.write_bytes(content)
    elif what == "header":
        place = seed % 9 if seed % 2 else 8 + seed % max(min(len(content), 3000) - 8, 1)
        content[place % len(content)] = seed % 251
        path.write_bytes(content)
    elif what == "garbage":
        path.write_bytes(struct.pack("<Q", seed) + b"{" * (seed % 99) if seed % 2 else os.urandom(seed % 999))
    elif what == "folder":
        path.unlink()
        path.mkdir()
    elif what in ("dangling", "link", "other name"):
        target = path.with_name("elsewhere")
        path.rename(target)
        if what != "other name":
            path.symlink_to("nowhere" if what == "dangling" else target.name)
    return what == "link"


def edit_file(path, edit):
    """Change a file of tensors; returns whether it still says the same."""
    if edit[0] in BYTES:
        return edit_bytes(path, edit)
    tensors = load_file(path)
    same = edit_tensors(tensors, edit)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return same


@pytest.fixture
def adapter_folder(model, model_folder, processor, tmp_path):
    """An adapter beside the model that it was trained on."""
    torch.manual_seed(1)
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = "../model"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    return tmp_path / "adapter"


def check_answer(found, usual, edit, same):
    """Return whether there is an answer, which must be the usual one of tensors that say the same."""
    if found is None:
        assert not same or edit[0] == "extra"
        return False
    assert edit[0] != "value" or math.isfinite(edit[2])
    if same:
        np.testing.assert_array_equal(found, usual)
    return True


def test_models(fuzz, model_folder, noise, tmp_path):
    picture, numbers = Image.fromarray(noise[:20, :30]), count()
    usual = fuzz.segment(model_folder, picture)

    def check(edit):
        folder = tmp_path / f"model {next(numbers)}"
        shutil.copytree(model_folder, folder)
        same = edit_file(folder / "model.safetensors", edit)
        for load in (load_model, lambda place: load_base(place, {})):
            fuzz.attempt(lambda load=load: load(folder), folder)
        found = fuzz.segment(folder, picture, folder)
        shutil.rmtree(folder)
        return check_answer(found, usual, edit, same)

    names = load_file(model_folder / "model.safetensors")
    fuzz.run("weights, models", edits(names), check, few=8, many=200)


# Changes to an adapter's description.
DESCRIPTIONS = st.sampled_from(
    [
        *({"num_tokens": value} for value in (3, -1, "x", None)),
        *({"peft_type": value} for value in ("LORA", "?", None, 3)),
        *({"model_config": value} for value in ({}, {"decode_head_type": "?"}, {"num_decoder_layers": 2}, "?", [1])),
        *({"base_model_name_or_path": value} for value in ("../../../etc", ".", None, "../adapter", "a\nb", "\0", 3)),
        *({"target_modules": value} for value in (["nothing"], "(", 3)),
        *({"modules_to_save": value} for value in (["nothing"], None, 3)),
        *({"text_prompts": "whole", "text_prompt_ids": value} for value in (None, [0, 10**9, 1], [0, 5, 1])),
        {"num_deep_layers": 99}, {"clip_model_name_or_path": []}, {"dropout": 7}, {"spectral_prompt": True},
        {"task_type": "?"}, {"auto_mapping": 3}, {"inference_mode": "?"}, {"revision": 3}, {"unknown": 1},
    ]
)  # fmt: skip


def test_adapters(fuzz, adapter_folder, model, noise, tmp_path):
    picture, numbers = Image.fromarray(noise[:20, :30]), count()
    usual = fuzz.segment(adapter_folder, picture)
    own = get_peft_model(load_base(tmp_path / "model", {}), DeepPromptConfig(num_tokens=2))

    def check(edit):
        folder = tmp_path / f"adapter {next(numbers)}"
        shutil.copytree(adapter_folder, folder)
        same = edit[0] != "description" and edit_file(folder / "adapter_model.safetensors", edit)
        if edit[0] == "description":
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | edit[1]))
        into = fuzz.attempt(lambda: load_adapter_into(own, folder) or True, folder)
        found = fuzz.segment(folder, picture, folder)
        shutil.rmtree(folder)
        assert into is None or all(parameter.isfinite().all() for parameter in own.parameters())
        return check_answer(found, usual, edit, same)

    cases = st.one_of(
        edits(load_file(adapter_folder / "adapter_model.safetensors")), st.tuples(st.just("description"), DESCRIPTIONS)
    )
    fuzz.run("weights, adapters", cases, check, few=8, many=200)


def test_checkpoints(fuzz, official, tmp_path):
    """Through the command: a whole folder that loads, or one sentence and nothing."""
    numbers = count()

    def check(case):
        edit, suffix, wrapped, method = case
        place = tmp_path / f"{next(numbers)}"
        place.mkdir()
        path, output = place / f"official{suffix}", place / "converted"
        tensors = dict(official)
        if edit[0] not in BYTES:
            edit_tensors(tensors, edit)
        if suffix == ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        else:
            contents = {
                "state": {"state_dict": tensors, "meta": {}}, "none": tensors, "deep": {"state_dict": {"a": tensors}},
                "list": list(tensors.values()), "numbers": dict(enumerate(tensors.values())), "text": "tensors",
            }  # fmt: skip
            torch.save(contents[wrapped], path)
        if edit[0] in BYTES:
            edit_bytes(path, edit)
        succeeded, _, complaints = fuzz.command("convert", path, output, "--method", method)
        assert succeeded == output.exists()
        assert not [path for path in place.iterdir() if path.name.startswith(".")]
        if succeeded:
            loaded = load_model(output)
            assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
        else:
            assert len(complaints) == 1
            assert str(path) in complaints[0]
        shutil.rmtree(place)
        return succeeded

    wrappings = st.sampled_from(["state", "state", "none", "deep", "list", "numbers", "text"])
    methods = st.sampled_from(["zegclip", "zegclip", "zegclip", "spt-seg"])
    # Half of them those that sizes are read off.
    sizes = (
        "conv1", "proj", "positional_embedding", "token_embedding", "prompt_embeddings", "0.linear1", "0.mlp.c_fc",
    )  # fmt: skip
    names = [*official, *[name for name in official if name.removesuffix(".weight").endswith(sizes)] * 5]
    cases = st.tuples(edits(names), st.sampled_from([".pth", ".safetensors"]), wrappings, methods)
    fuzz.run("weights, official checkpoints through the command", cases, check, few=10, many=200)
