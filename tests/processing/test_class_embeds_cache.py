"""Class embeddings on disk: what is taken from there is what would be encoded, whatever happened to the files."""

import copy
import os
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig

from zegclip import DeepPromptConfig
from zegclip.processing import class_embeds_cache, name_encoder
from zegclip.processing.class_embeds_cache import default_cache_folder, hash_text_tower
from zegclip.processing.name_encoder import NameEncoder

LABELS = ["cat", "tree", "a b c d", "dog"]
TEMPLATES = ["a photo of a {}", "a small {} in it", "{}"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "zegclip" / "class_embeds"


@pytest.fixture
def encode(model, processor, folder, monkeypatch):
    """Encode as a new process would; returns the embeddings and how many rows went through the text tower."""
    rows, original = [], type(model).get_class_embeds
    monkeypatch.setattr(
        type(model), "get_class_embeds", lambda self, **kw: rows.append(len(kw["input_ids"])) or original(self, **kw)
    )

    def encode(labels=LABELS, templates=TEMPLATES, cache_folder=folder):
        rows.clear()
        return NameEncoder(model, processor, templates, cache_folder=cache_folder).encode(labels), sum(rows)

    return encode


def files(folder):
    return sorted(folder.glob("*")) if folder.is_dir() else []


def test_the_second_start_encodes_only_names_that_are_new(encode, folder):
    fresh, _ = encode(cache_folder=None)
    assert not files(folder)
    first, rows = encode()
    assert rows == len(LABELS) * len(TEMPLATES)
    assert torch.equal(first, fresh)
    again, rows = encode()
    assert rows == 0
    assert torch.equal(again, fresh)
    other, rows = encode(["bird", *reversed(LABELS)])
    assert rows == len(TEMPLATES)
    torch.testing.assert_close(other[1:].flip(0), fresh, atol=1e-6, rtol=0)
    assert all(path.suffix == ".safetensors" for path in files(folder))
    assert len(files(folder)) == len(LABELS) + 1


def test_a_name_has_the_same_embedding_in_every_batch(encode, model, processor, monkeypatch):
    inputs = processor(text=LABELS, prompt_templates=TEMPLATES, return_tensors="pt")
    expected = model.get_class_embeds(**inputs).detach()
    for rows_at_once in (1, 5, 256):
        monkeypatch.setattr(name_encoder, "ROWS_AT_ONCE", rows_at_once)
        torch.testing.assert_close(encode(cache_folder=None)[0], expected, atol=1e-6, rtol=0)


def change_weight(model):
    model.clip.text_model.encoder.layers[1].mlp.fc2.bias.data[-1] += 0.25


def change_projection(model):
    model.clip.text_projection.weight.data[0, 0] += 0.25


def change_heads(model):
    for layer in model.clip.text_model.encoder.layers:
        layer.self_attn.num_heads, layer.self_attn.head_dim = 4, 8
        layer.self_attn.scale = 8**-0.5
    model.clip.text_model.config.num_attention_heads = 4


def change_end(model):
    model.clip.text_model.eos_token_id = 5


def change_precision(model):
    model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [change_weight, change_projection, change_heads, change_end, change_precision])
def test_another_text_tower_has_embeddings_of_its_own(encode, model, change):
    encode()
    change(model)
    expected, _ = encode(cache_folder=None)
    found, rows = encode()
    assert rows
    assert torch.equal(found, expected)


def test_other_templates_and_another_order_of_them_are_others(encode):
    encode()
    assert encode(templates=TEMPLATES[::-1])[1]
    assert encode(templates=TEMPLATES[:1])[1]
    assert not encode()[1]


def test_vision_tower_head_and_path_do_not_matter(encode, model):
    encode()
    model.clip.vision_model.post_layernorm.weight.data += 1
    model.config._name_or_path = model.name_or_path = "elsewhere"
    model.add_adapter(DeepPromptConfig(num_tokens=2))  # without text prompts
    assert encode()[1] == 0


def test_text_prompts_count_while_they_are_active(encode, model, processor, folder):
    templates = ["a photo of a {}"]
    plain, _ = encode(templates=templates)
    prompts = {"text_prompts": "whole", "text_prompt_ids": processor.text_prompt_ids()}
    for name in ("one", "two"):
        model.add_adapter(DeepPromptConfig(num_tokens=2, **prompts), adapter_name=name)
        with torch.no_grad():
            model.clip.text_model.encoder.deep_prompt_tokens[name].add_(len(name) + (name == "two"))
        expected, _ = encode(templates=templates, cache_folder=None)
        found, rows = encode(templates=templates)
        assert rows == len(LABELS)
        assert torch.equal(found, expected)
        assert not torch.equal(found, plain)
    model.set_adapter("one")
    assert encode(templates=templates)[1] == 0
    model.disable_adapters()
    found, rows = encode(templates=templates)
    assert rows == 0
    assert torch.equal(found, plain)


def test_what_cannot_be_known_is_not_kept(encode, model, folder):
    """LoRA can be scaled, merged or switched off, of which its tensors say nothing."""
    assert hash_text_tower(copy.deepcopy(model).to("meta")) is None
    model.clip.add_adapter(LoraConfig(target_modules=".*text_model.*q_proj"))
    assert encode()[1]
    assert not files(folder)


@pytest.mark.parametrize("damage", ["emptied", "cut", "changed", "another file", "a folder"])
def test_a_damaged_file_is_ignored_and_written_again(encode, folder, damage):
    fresh, _ = encode()
    broken = files(folder)[0]
    content = bytearray(broken.read_bytes())
    if damage == "emptied":
        content = b""
    elif damage == "cut":
        content = content[:-3]
    elif damage == "changed":
        content[-1] ^= 1
        assert encode()[1] == 0
    elif damage == "another file":
        content = b"<html>not found</html>"
    broken.unlink()
    if damage == "a folder":
        broken.mkdir()
    else:
        broken.write_bytes(content)
    found, rows = encode()
    assert rows == len(TEMPLATES)
    torch.testing.assert_close(found, fresh, atol=1e-6, rtol=0)
    assert encode()[1] == (len(TEMPLATES) if damage == "a folder" else 0)
    assert not list(folder.glob("*.part"))


def test_a_place_that_cannot_be_written_costs_nothing_but_time(encode, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    fresh, _ = encode(cache_folder=None)
    assert torch.equal(encode(cache_folder=tmp_path / "file" / "inside")[0], fresh)
    if os.path.exists("/dev/full"):
        os.symlink("/dev/full", tmp_path / "link")
        real = open
        full = lambda path, mode: real(tmp_path / "link" if mode == "xb" else path, mode.replace("x", "w"))
        monkeypatch.setattr(class_embeds_cache, "open", full, raising=False)
        found, rows = encode(cache_folder=tmp_path / "full")
        assert torch.equal(found, fresh)
        assert rows
        assert not files(tmp_path / "full")


def test_what_was_not_used_for_longest_goes_first(encode, folder, monkeypatch):
    encode(["cat"])
    (kept,) = files(folder)
    encode()
    for path in files(folder):
        age = 1000 + 10 * (path == kept)
        os.utime(path, (time.time() - age, time.time() - age))
    assert not encode(["cat"])[1]  # which was the oldest
    for name, age in (("old.part", 2 * 24 * 3600), ("new.part", 10)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    (folder / "notes.txt").write_text("not ours")
    monkeypatch.setattr(class_embeds_cache, "MAX_BYTES", 3 * 4096)
    encode(["bird"])
    names = {path.name for path in files(folder)}
    assert {kept.name, "new.part", "notes.txt"} <= names
    assert "old.part" not in names
    assert len([name for name in names if name.endswith(".safetensors")]) <= 3
    for number in range(10):  # each a process of its own
        encode([f"cat {number}"])
    assert len(list(folder.glob("*.safetensors"))) <= 4


def test_several_processes_may_write_at_once(encode, model, processor, folder, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    code = (
        "from zegclip.loading import load_model, load_processor\n"
        "from zegclip.processing.name_encoder import NameEncoder\n"
        f"place, folder = {str(tmp_path / 'model')!r}, {str(folder)!r}\n"
        "model, processor = load_model(place), load_processor(place)\n"
        "for number in range(20):\n"
        f"    NameEncoder(model, processor, {TEMPLATES!r}, cache_folder=folder).encode([*{LABELS!r}, f'b {{number}}'])"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert len(files(folder)) == len(LABELS) + 20
    expected, _ = encode(cache_folder=None)
    found, rows = encode()
    assert rows == 0  # another process, and a model that was saved in between
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_variable_moves_the_folder_or_turns_it_off(monkeypatch, tmp_path):
    monkeypatch.delenv("ZEGCLIP_CACHE", raising=False)
    usual = default_cache_folder()
    assert usual.startswith(os.environ["HF_HOME"])
    monkeypatch.setenv("ZEGCLIP_CACHE", str(tmp_path))
    assert os.path.dirname(default_cache_folder()) == str(tmp_path)
    for off in ("", "0"):
        monkeypatch.setenv("ZEGCLIP_CACHE", off)
        assert default_cache_folder() is None


def test_a_bar_is_shown_only_where_it_is_asked_for(model, processor, monkeypatch):
    bars, real = [], name_encoder.tqdm
    monkeypatch.setattr(name_encoder, "tqdm", lambda *args, **kwargs: bars.append(kwargs) or real(*args, **kwargs))
    for show in (False, True):
        NameEncoder(model, processor, None, show_progress=show).encode(LABELS)
    assert [bar["disable"] for bar in bars] == [True, None]  # None: shown on a terminal
