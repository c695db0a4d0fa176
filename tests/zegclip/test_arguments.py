"""Configurations: files, command-line overrides, and what is wrong with a wrong one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from zegclip.arguments import parse_arguments

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses(path, tmp_path):
    model_args, data_args, training_args = parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu"])
    assert training_args.max_steps > 0 or data_args.setting == "cross_dataset"
    assert data_args.dataset
    assert isinstance(model_args.config_overrides(), dict)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("learning_rate: 3e-4\nnum_prompt_tokens: 7\nfocal_weight: 20\noutput_dir: here\nuse_cpu: true")
    model_args, data_args, training_args = parse_arguments([str(path), "--num_prompt_tokens", "9"])
    assert training_args.learning_rate == 3e-4
    assert model_args.num_prompt_tokens == 9
    assert model_args.config_overrides() == {"focal_weight": 20}
    assert data_args.eval_split == "tuning"


def test_numbers_are_numbers(tmp_path):
    path = tmp_path / "own.yaml"
    text = (
        "scale_range: [5e-1, 2]\nlr_scheduler_kwargs: {power: 0.9, lr_end: 1e-6}\nlearning_rate: 1e-3\nuse_cpu: true"
    )
    path.write_text(text)
    _, data_args, training_args = parse_arguments([str(path), "--no_photometric_distortion"])
    assert data_args.scale_range == [0.5, 2.0]
    assert training_args.lr_scheduler_kwargs == {"power": 0.9, "lr_end": 1e-6}
    assert training_args.learning_rate == 1e-3
    assert not data_args.photometric_distortion


def test_the_default_configuration_is_announced(tmp_path, capsys):
    parse_arguments(["--output_dir", str(tmp_path), "--use_cpu"], default_config=CONFIGS[0])
    assert "generated picture world, offline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_promt_tokens: 3", r"own\.yaml: unknown field 'num_promt_tokens'. Did you mean 'num_prompt_tokens'"),
        ("eval_split: both", "eval_split of the picture world must be tuning or test, not 'both'"),
        ("setting: other", "setting must be one of"),
        ("- a\n- b", r"own\.yaml: a configuration is a mapping"),
        ("a: [", r"own\.yaml: not valid YAML"),
        ("seed: 2026-02-30", r"own\.yaml: not valid YAML \(day is out of range for month\)"),
        ("seed: !!timestamp noon", r"own\.yaml: not valid YAML"),
        ("learning_rate: {a: 1}", r"own\.yaml: learning_rate must be text or a number, as it is \{'a': 1\}"),
        ("output_dir: !!binary aGk=", r"own\.yaml: output_dir must be text or a number"),
        ("descriptor: [[text]]", r"own\.yaml: descriptor must be a list of text or numbers, not \[\['text'\]\]"),
        ("seed: [[[1]], [2]]", r"own\.yaml: seed must not be a list, as it is \[\[\[\.\.\.\]\], \[2\]\]\.$"),
        ("seed: &a [*a]", r"own\.yaml: seed must not be a list"),
        ("num_prompt_tokens: 2.5", "num_prompt_tokens.*invalid int value: '2.5'"),
        ("num_eval_pictures: many", "num_eval_pictures.*invalid int value: 'many'"),
        ("descriptor: product", r"own\.yaml: descriptor must be a list"),
        ("learning_rate: [1]", r"own\.yaml: learning_rate must not be a list"),
        ("scene_seed:", r"own\.yaml: scene_seed has no value"),
        ("crop_size: 0", "crop_size must be at least 1, not 0"),
        ("scale_range: [a, 2]", r"scale_range must be a list of numbers, not \['a', 2\]"),
        ("dataloader_num_workers: 1\ndataloader_persistent_workers: true", "dataloader_persistent_workers would make"),
        ("dataset: voc", "data_dir is missing: say where voc lies"),
        ("total_train_batch_size: 0", "total_train_batch_size=0 cannot be shared out"),
        ("total_train_batch_size: 3\ngradient_accumulation_steps: 2", "accumulation steps is 1 x 2"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(path), "--use_cpu"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--descriptor", "foo"], "descriptor must list"),
        (["--decoder_attention_heads", "7"], "decoder_attention_heads=7 does not divide"),
        (["--decode_head_type", "other"], "decode_head_type"),
        (["--prompt_templates", "a photo"], "exactly"),
        (["--model", "outputs/none"], "there is no such model folder"),
        (["--num_prompt_tokens", "x"], "invalid int value: 'x'"),
        (["--dataset", "nowhere"], "nowhere"),
        (["--dataset", "coco_stuff", "--data_dir", "nowhere"], "nowhere"),
        (["--setting", "cross_dataset"], "cross_dataset is for eval.py"),
        (["--setting", "transductive", "--init_adapter", "nowhere"], "nowhere: there is no such adapter folder"),
        (["--scale_range", "2"], "scale_range must have two numbers"),
    ],
)
def test_scripts_end_with_one_sentence(tmp_path, monkeypatch, words, message):
    """What only shows when the model is built is no traceback either."""
    script = Path(__file__).parents[2] / "train.py"
    (tmp_path / "outputs").mkdir()
    command = [sys.executable, str(script), "--use_cpu", "--output_dir", "run", "--num_train_pictures", "2", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    assert re.search(message, last)


def test_text_prompts_of_a_file_can_be_left_out():
    path = Path(__file__).parents[2] / "configs" / "ldvc_picture_world_inductive.yaml"
    assert parse_arguments([str(path), "--use_cpu"])[0].text_prompts == "whole"
    assert parse_arguments([str(path), "--use_cpu", "--text_prompts", "none"])[0].text_prompts is None


def test_wrong_command_lines(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: there is no such configuration file"):
        parse_arguments([str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match=r"unknown field 'learning_rat'\. Did you mean 'learning_rate'"):
        parse_arguments(["--learning_rat", "1"])
