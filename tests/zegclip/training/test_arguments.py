"""Configurations: files, command-line overrides, and what is wrong with a wrong one."""

from pathlib import Path
from typing import get_type_hints

import pytest

import zegclip
from zegclip.commands.main import main
from zegclip.errors import UsageError
from zegclip.training.arguments import DataArguments, ModelArguments, parse_arguments
from zegclip.training.config_file import find_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses(path, tmp_path):
    model_args, data_args, training_args = parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu"])
    assert training_args.max_steps > 0 or data_args.setting == "cross_dataset" or "training_free" in path.stem
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


WRITTEN = [
    "no", "on", "Yes", "off", "true", "1_000", "0x10", "010", "0b1", "12:30", "1.50", "1e3", ".5", ".inf",
    "2026-11-21", "2026_01", "+1", "cat",
]  # fmt: skip


@pytest.mark.parametrize("field", ["seen_classes", "unseen_classes", "ignored_classes", "descriptor"])
def test_names_are_what_is_written(tmp_path, field):
    """YAML 1.1 would make truth values, numbers and dates of them."""
    path = tmp_path / "own.yaml"
    for text in (f"{field}: [{', '.join(WRITTEN)}]", "\n  - ".join([f"{field}:", *WRITTEN])):
        path.write_text(f"{text}\nuse_cpu: true")
        model_args, data_args, _ = parse_arguments([str(path)])
        assert getattr(model_args if field == "descriptor" else data_args, field) == WRITTEN


@pytest.mark.parametrize(
    ("written", "read"),
    [*((text, text) for text in WRITTEN), ("'null'", "null"), ("''", ""), ("", None), ("~", None), ("null", None)],
)
def test_text_is_what_is_written(tmp_path, written, read):
    """Without a value, and as YAML's null, the field is left open."""
    path = tmp_path / "own.yaml"
    path.write_text(f"classes_file: {written}\nuse_cpu: true")
    assert parse_arguments([str(path)])[1].classes_file == read


def test_numbers_and_truth_values_are_read_by_the_field(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "use_cpu: on\nbaseline: no\nmax_steps: 1_000\nseed: 010\nlearning_rate: 5e-1\neval_strategy: no\n"
        "scale_range: [5e-1, 2]\n"
        "lr_scheduler_kwargs: {power: 010, lr_end: 1e-6, other: 1:30}\n"
        "accelerator_config: {split_batches: no, even_batches: On}"
    )
    _, data_args, training_args = parse_arguments([str(path), "--no_photometric_distortion"])
    assert data_args.scale_range == [0.5, 2.0]
    assert not data_args.photometric_distortion
    assert not data_args.baseline
    assert (training_args.max_steps, training_args.seed, training_args.learning_rate) == (1000, 10, 0.5)
    assert training_args.eval_strategy == "no"
    assert training_args.lr_scheduler_kwargs == {"power": 10, "lr_end": 1e-6, "other": "1:30"}
    assert training_args.accelerator_config.split_batches is False
    assert training_args.accelerator_config.even_batches is True


def test_a_mapping_can_be_merged_into_another(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("lr_scheduler_kwargs: &own {power: 0.5}\n<<: {use_cpu: true, seed: 3}\nseen_classes: [no]")
    _, data_args, training_args = parse_arguments([str(path)])
    assert training_args.seed == 3
    assert training_args.lr_scheduler_kwargs == {"power": 0.5}
    assert data_args.seen_classes == ["no"]


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        ("num_promt_tokens: 3", r"own\.yaml.*num_promt_tokens.*num_prompt_tokens"),
        ("eval_split: both", "eval_split.*both"),
        ("setting: other", "setting"),
        ("- a\n- b", r"own\.yaml"),
        ("a: [", r"own\.yaml"),
        ("seed: 2026-02-30", "seed.*2026-02-30"),
        ("lr_scheduler_kwargs: {power: !!timestamp 2026-02-30}", r"own\.yaml.*day is out of range"),
        ("seed: 1\nmax_steps: 2\nseed: 3", r"own\.yaml.*'seed'"),
        ("max_steps: 0x10", "max_steps.*0x10"),
        ("max_steps: 1:30", "max_steps.*1:30"),
        ("out_indices: [7.9, 11]", r"out_indices.*7\.9"),
        ("seen_classes: [cat, null]", r"own\.yaml: seen_classes"),
        ("seen_classes: [cat, ~]", r"own\.yaml: seen_classes"),
        ("learning_rate: {a: 1}", r"own\.yaml: learning_rate"),
        ("output_dir: !!binary aGk=", r"own\.yaml: output_dir"),
        ("descriptor: [[text]]", r"own\.yaml: descriptor"),
        ("descriptor: product", r"own\.yaml: descriptor"),
        ("seed: [[[1]], [2]]", r"own\.yaml: seed"),
        ("seed: &a [*a]", r"own\.yaml: seed"),
        ("num_prompt_tokens: 2.5", "num_prompt_tokens"),
        ("num_eval_pictures: many", "num_eval_pictures"),
        ("learning_rate: [1]", r"own\.yaml: learning_rate"),
        ("scene_seed:", r"own\.yaml: scene_seed"),
        ("crop_size: 0", "crop_size"),
        ("scale_range: [a, 2]", "scale_range"),
        ("dataloader_num_workers: 1\ndataloader_persistent_workers: true", "dataloader_persistent_workers"),
        ("dataset: voc", "data_dir"),
        ("total_train_batch_size: 0", "total_train_batch_size"),
        ("total_train_batch_size: 3\ngradient_accumulation_steps: 2", "total_train_batch_size"),
    ],
)
def test_wrong_files(tmp_path, content, mentioned):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=mentioned):
        parse_arguments([str(path), "--use_cpu"])


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (["none.yaml"], "none.yaml"),
        (["--learning_rat", "1"], "'learning_rate'"),
        (["--num_prompt_tokens", "x"], "'x'"),
        (["--scale_range", "2"], "scale_range"),
        (["--setting", "cross_dataset"], "cross_dataset"),
        # These show when the model or the data are loaded.
        (["--descriptor", "foo"], "descriptor"),
        (["--decoder_attention_heads", "7"], "decoder_attention_heads=7"),
        (["--decode_head_type", "other"], "decode_head_type"),
        (["--prompt_templates", "a photo"], "a photo"),
        (["--model", "outputs/none"], "outputs/none"),
        (["--dataset", "voc"], "zegclip_voc_inductive"),
        (["--dataset", "coco_stuff171"], "training_free_coco_stuff"),
        (["--dataset", "own"], "eval_split"),
        (["zegclip_folder", "--dataset", "nowhere"], "nowhere"),
        (["zegclip_coco_stuff_inductive", "--model", str(zegclip.DEFAULT_MODEL), "--data_dir", "nowhere"], "nowhere"),
        (["--text_prompts", "other"], "text_prompts must be"),
        (["--results_dir", "file"], "results_dir must be a folder"),
        (["--accelerator_config", '{"other": 1}'], "accelerator_config: "),
        (["--lr_scheduler_kwargs", "{power}"], "lr_scheduler_kwargs: "),
        (["--activation_checkpointing_kwargs", '{"other": 1}'], "activation_checkpointing_kwargs"),
        (["--torch_compile_mode", "other"], "torch_compile_mode"),
        (["--torch_compile_backend", "other"], "torch_compile_backend"),
        (["--setting", "transductive", "--init_adapter", "nowhere"], "nowhere"),
    ],
)
def test_wrong_command_lines(tmp_path, monkeypatch, capsys, words, mentioned):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "file").touch()
    usual = ["--use_cpu", "--output_dir", "run", "--num_train_pictures", "2"]
    assert main(["train", *words, *usual], program="train.py") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    assert mentioned in last


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="output_dir must be a folder"):
        parse_arguments(["--use_cpu", "--output_dir", str(tmp_path / "file")])


def test_every_list_can_be_emptied(tmp_path):
    lists = {
        name: (kind, index)
        for index, kind in enumerate((ModelArguments, DataArguments))
        for name, hint in get_type_hints(kind).items()
        if "list[" in str(hint)
    }
    assert {"unseen_classes", "out_indices", "scale_range"} <= lists.keys()
    for name, (_, index) in lists.items():
        path = tmp_path / "own.yaml"
        path.write_text(f"{name}: ['1', '2']\nuse_cpu: true")
        assert len(getattr(parse_arguments([str(path)])[index], name)) == 2
        assert getattr(parse_arguments([str(path), f"--{name}"])[index], name) == []
        path.write_text(f"{name}: []\nuse_cpu: true")
        assert getattr(parse_arguments([str(path)])[index], name) == []


def test_help_gives_each_default_once(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Default: the embedded one." in text
    assert "(default: 0.1)" in text
    assert "default: None" not in text


def test_text_prompts_of_a_file_can_be_left_out():
    path = Path(__file__).parents[3] / "configs" / "ldvc_picture_world_inductive.yaml"
    assert parse_arguments([str(path), "--use_cpu"])[0].text_prompts == "whole"
    assert parse_arguments([str(path), "--use_cpu", "--text_prompts", "none"])[0].text_prompts is None


def test_a_name_stands_for_the_configuration_of_the_package_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("zegclip_voc_inductive").resolve() == CONFIGS[0].with_name("zegclip_voc_inductive.yaml")
    (tmp_path / "zegclip_voc_inductive").write_text("seed: 7")
    assert find_config("zegclip_voc_inductive") == Path("zegclip_voc_inductive")
    for name in ("zegclip_voc_inductiv", "configs/zegclip_voc_inductive.yaml"):
        with pytest.raises(UsageError, match="'zegclip_voc_inductive'"):
            find_config(name)
    with pytest.raises(UsageError, match="no such"):
        find_config("accelerate/one_gpu")
