"""The two scripts, run as a user runs them, on a tiny CLIP and a handful of drawn scenes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zegclip import ZegClipForSemanticSegmentation

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml")
SMALL = ["--num_train_pictures", "6", "--num_eval_pictures", "2", "--per_device_train_batch_size", "2", "--use_cpu"]
WINDOWS = ["--window_stride", "48"]
HEAD = ["--decoder_attention_heads", "2", "--decoder_ffn_dim", "32", "--num_prompt_tokens", "2", *WINDOWS]


def script(name):
    """Import one of the scripts of the repository's root."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clip_folder(model, tokenizer, tmp_path):
    folder = tmp_path / "clip"
    model.clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(clip_folder, output, *words):
    arguments = [CONFIG, "--model", str(clip_folder), "--output_dir", str(output), "--max_steps", "2"]
    return script("train").main([*arguments, *SMALL, *HEAD, *words])


def test_train_saves_an_adapter_that_eval_reads(clip_folder, tmp_path, capsys):
    metrics = train(clip_folder, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "tokenizer.json"} <= files
    results_file = tmp_path / "results.json"
    arguments = ["--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "eval"), "--window_stride", "48"]
    results = script("eval").main([CONFIG, *arguments, *SMALL, "--results_file", str(results_file)])
    assert results == json.loads(results_file.read_text())
    for name in ("pacc", "miou_seen", "miou_unseen", "hiou", "objects_hiou"):
        assert results["model"][name] == pytest.approx(metrics[f"eval_{name}"], nan_ok=True)
    assert results["training-free baseline"].keys() == results["model"].keys()
    assert "training-free baseline" in capsys.readouterr().out


def test_training_changes_the_adapter_and_nothing_else(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run", "--learning_rate", "0.01", "--warmup_steps", "0")
    trained = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "run")
    base = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=trained.config)
    for name, tensor in base.clip.state_dict().items():
        name = name.replace("vision_model.encoder.", "vision_model.encoder.base_layer.")
        assert torch.equal(trained.clip.state_dict()[name], tensor), name
    head = trained.decode_head.modules_to_save["default"]
    assert head.query_proj.weight[:, :32].abs().max() > 0  # starts at zero with the identity start
    assert trained.config.seen_class_names


def test_the_same_command_resumes_from_the_last_checkpoint(clip_folder, tmp_path, capsys):
    words = ["--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--disable_tqdm", "true"]
    train(clip_folder, tmp_path / "run", *words)
    train(clip_folder, tmp_path / "run", *words, "--max_steps", "4")
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]


def test_a_wrong_field_is_one_sentence(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), CONFIG, "--lerning_rate", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("train.py: The command line names the unknown field")
    assert "Traceback" not in result.stderr
