"""Configurations: files, command-line overrides, and what is wrong with a wrong one."""

from pathlib import Path

import pytest

from zegclip.arguments import parse_arguments

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses(path, tmp_path):
    model_args, data_args, training_args = parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu"])
    assert training_args.max_steps > 0
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
    assert training_args.lr_scheduler_kwargs == {"power": 0.9, "lr_end": 1e-6}


def test_the_default_configuration_is_announced(tmp_path, capsys):
    parse_arguments(["--output_dir", str(tmp_path), "--use_cpu"], default_config=CONFIGS[0])
    assert "generated picture world, offline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_promt_tokens: 3", r"own\.yaml: unknown field 'num_promt_tokens'. Did you mean 'num_prompt_tokens'"),
        ("eval_split: both", "eval_split must be one of tuning, test, not 'both'"),
        ("setting: other", "setting must be one of"),
        ("- a\n- b", r"own\.yaml: a configuration is a mapping"),
        ("a: [", r"own\.yaml: not valid YAML"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(path), "--use_cpu"])


def test_wrong_command_lines(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: there is no such configuration file"):
        parse_arguments([str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match=r"unknown field 'learning_rat'\. Did you mean 'learning_rate'"):
        parse_arguments(["--learning_rat", "1"])
