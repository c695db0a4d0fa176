"""Output folders belong to one run, and a transductive run has two stages."""

import json

import pytest
from PIL import Image

from zegclip.errors import UsageError
from zegclip.training.arguments import DataArguments, ModelArguments
from zegclip.training.data import load_data
from zegclip.training.run_folder import (
    claim_output_dir,
    describe_contents,
    describe_run,
    is_finished,
    refuse_other_run,
    stages_of,
)
from zegclip.training.train import _print_next_commands
from zegclip.training.training_arguments import ZegClipTrainingArguments


def arguments(folder, model=None, data=None, **training):
    return (
        ModelArguments(**model or {}),
        DataArguments(**data or {}),
        ZegClipTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **training),
    )


@pytest.fixture
def record(tmp_path):
    """The record of a run that has saved a checkpoint."""
    record = describe_run(*arguments(tmp_path, max_steps=4))
    claim_output_dir(tmp_path / "run", record)
    (tmp_path / "run" / "checkpoint-2").mkdir()
    return record


def test_a_run_may_come_back_with_other_reports(record, tmp_path):
    changed = arguments(tmp_path, data={"num_eval_pictures": 7}, max_steps=4, logging_steps=1, save_steps=3)
    claim_output_dir(tmp_path / "run", describe_run(*changed))
    # A version of before the field existed has written the record.
    older = {name: value for name, value in record.items() if name != "text_prompt_init"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))
    with pytest.raises(UsageError, match=r"text_prompt_init 'template'.*'random'"):
        claim_output_dir(tmp_path / "run", record | {"text_prompt_init": "random"})
    claim_output_dir(tmp_path / "run", record)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"max_steps": 5}, "max_steps"),
        ({"model": {"num_prompt_tokens": 3}}, "num_prompt_tokens"),
        ({"model": {"training_free_weight": 0.1}}, "training_free_weight"),
        ({"data": {"unseen_classes": ["cat"]}}, "unseen_classes"),
        ({"per_device_train_batch_size": 3}, "total_train_batch_size"),
    ],
)
def test_another_run_is_refused_where_there_is_a_checkpoint(record, tmp_path, changed, name):
    other = describe_run(*arguments(tmp_path, **{"max_steps": 4} | changed))
    with pytest.raises(UsageError, match=f"{name}.*output_dir"):
        claim_output_dir(tmp_path / "run", other)
    (tmp_path / "run" / "checkpoint-2").rmdir()
    claim_output_dir(tmp_path / "run", other)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == other


def test_the_choice_of_the_best_model_is_named(record, tmp_path):
    """With it, a record has more settings than before."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "hiou", "eval_strategy": "steps"}
    steps = {"eval_steps": 2, "save_steps": 2, "save_strategy": "steps"}
    other = describe_run(*arguments(tmp_path, data={"num_eval_pictures": 7}, max_steps=4, **best, **steps))
    with pytest.raises(UsageError, match="load_best_model_at_end False"):
        claim_output_dir(tmp_path / "run", other)


@pytest.mark.parametrize("field", ["seen_offset", "window_stride"])
def test_how_the_best_step_is_found_may_not_change(tmp_path, field):
    fields = {
        "load_best_model_at_end": True, "metric_for_best_model": "hiou", "eval_strategy": "steps", "eval_steps": 2,
        "save_steps": 2, "save_strategy": "steps", "max_steps": 4,
    }  # fmt: skip
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    first = describe_run(*arguments(tmp_path, **fields))
    (tmp_path / "run" / "run.json").write_text(json.dumps(first))
    changed = fields | {field: 0.3} if field == "seen_offset" else fields
    data = {} if field == "seen_offset" else {field: 7}
    with pytest.raises(UsageError, match=field):
        claim_output_dir(tmp_path / "run", describe_run(*arguments(tmp_path, data=data, **changed)))


def test_paths_may_be_spelled_differently(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "run" / "inductive").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    first, *others = (
        describe_run(*arguments(root + "run", {"init_adapter": root + "run/inductive"}, {"dataset": root + "data"}))
        for root in ("", "./", f"{tmp_path}/")
    )
    assert all(record == first for record in others)


@pytest.fixture
def places(tmp_path, clip_folder, model):
    """A CLIP, an adapter, pictures with masks, and a run that has saved weights."""
    root = tmp_path / "project"
    root.mkdir()
    clip_folder.rename(root / "clip")
    for name in ("adapter", "run/checkpoint-2"):
        (root / name).mkdir(parents=True)
        (root / name / "adapter_model.safetensors").write_bytes(b"weights")
    for split in ("train", "validation"):
        for kind in ("images", "masks"):
            (root / "data" / split / kind).mkdir(parents=True)
            for index in range(3):
                size = (4 + index, 5)
                Image.new("L", size, index).save(root / "data" / split / kind / f"{index}.png")
    (root / "data" / "classes.txt").write_text("cat\ndog\ntree\n")
    claim_output_dir(root / "new", record_of(root))
    (root / "new" / "run.json").rename(root / "run" / "run.json")
    return root


def record_of(root, evaluated=False, **changes):
    model_args, data_args, training_args = arguments(
        root / "run",
        model={"model": str(root / "clip"), "init_adapter": str(root / "adapter")},
        data={"dataset": str(root / "data"), "unseen_classes": ["dog"], **changes},
        max_steps=4,
    )
    data, split = load_data(data_args, training=True)
    contents = describe_contents(
        model_args, data_args, data["train"], split, data["validation"] if evaluated else None
    )
    return describe_run(model_args, data_args, training_args) | {"contents": contents}


def test_a_run_and_what_it_was_made_from_may_be_moved(places, tmp_path):
    claim_output_dir(places / "run", record_of(places))
    moved = places.rename(tmp_path / "mounted elsewhere")
    refuse_other_run(moved / "run", {name: value for name, value in record_of(moved).items() if name != "contents"})
    claim_output_dir(moved / "run", record_of(moved))
    assert json.loads((moved / "run" / "run.json").read_text()) == record_of(moved)
    for part in ("clip", "data", "run"):
        (moved / part).rename(tmp_path / part)
        (moved / part).symlink_to(tmp_path / part)
        claim_output_dir(moved / "run", record_of(moved))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def redraw(path):
    Image.effect_noise((5, 5), 40).save(path)


def rename(path):
    for kind in ("images", "masks"):
        file = path / kind / "0.png"
        file.rename(file.with_name("9.png"))


@pytest.mark.parametrize(
    ("name", "change", "mentioned"),
    [
        ("clip/model.safetensors", flip, "model"),
        ("clip/tokenizer.json", flip, "model"),
        ("adapter/adapter_model.safetensors", flip, "init adapter"),
        ("data/train/masks/1.png", redraw, "pictures"),
        ("data/train", rename, "pictures"),
        ("data/classes.txt", lambda path: path.write_text("cat\ndog\nhouse\n"), "class names"),
        ("data/classes.txt", lambda path: path.write_text("dog\ncat\ntree\n"), "class names"),
    ],
)
def test_other_contents_of_the_same_places_are_refused(places, name, change, mentioned):
    change(places / name)
    before = (places / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match=f"whose {mentioned} had another content"):
        claim_output_dir(places / "run", record_of(places))
    assert (places / "run" / "run.json").read_bytes() == before


def test_pictures_that_are_only_evaluated_may_change(places):
    flip(places / "data" / "validation" / "masks" / "1.png")
    claim_output_dir(places / "run", record_of(places, num_eval_pictures=1))


def test_pictures_that_choose_the_best_step_may_not_change(places):
    claim_output_dir(places / "run", record_of(places, evaluated=True))
    redraw(places / "data" / "validation" / "masks" / "1.png")
    with pytest.raises(UsageError, match="whose evaluation pictures had another content"):
        claim_output_dir(places / "run", record_of(places, evaluated=True))


def test_a_content_that_was_taken_out_of_the_record_is_filled_in(places):
    redraw(places / "data" / "train" / "masks" / "1.png")
    stored = json.loads((places / "run" / "run.json").read_text())
    del stored["contents"]["pictures"]
    (places / "run" / "run.json").write_text(json.dumps(stored))
    claim_output_dir(places / "run", record_of(places))
    assert json.loads((places / "run" / "run.json").read_text()) == record_of(places)


def test_a_run_of_before_contents_were_noted_goes_on_with_the_same_places(places, tmp_path):
    record = record_of(places)
    del record["contents"]
    for change in ({"model": "/another"}, {"dataset": "/another"}):
        (places / "run" / "run.json").write_text(json.dumps(record | change))
        with pytest.raises(UsageError, match=f"{next(iter(change))} '/another'"):
            claim_output_dir(places / "run", record_of(places))
    (places / "run" / "run.json").write_text(json.dumps(record))
    claim_output_dir(places / "run", record_of(places))
    assert json.loads((places / "run" / "run.json").read_text()) == record_of(places)


def test_a_named_data_set_is_no_folder(tmp_path, monkeypatch):
    """Also where a folder of that name lies, as `picture_world` does in this repository."""
    (tmp_path / "picture_world").mkdir()
    monkeypatch.chdir(tmp_path)
    assert describe_run(*arguments(tmp_path))["dataset"] == "picture_world"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors", "checkpoint-3/optimizer.pt"])
def test_a_folder_with_a_foreign_model_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=str(tmp_path)):
        claim_output_dir(tmp_path, describe_run(*arguments(tmp_path)))
    assert not (tmp_path / "run.json").exists()


def test_only_a_run_at_its_last_step_is_finished(tmp_path):
    assert not is_finished(tmp_path)
    for text, finished in (
        ('{"global_step": 3', False),
        (json.dumps({"global_step": 3, "max_steps": 4}), False),
        (json.dumps({"global_step": 4, "max_steps": 4}), True),
    ):
        (tmp_path / "trainer_state.json").write_text(text)
        assert is_finished(tmp_path) is finished


def test_self_training_starts_from_the_half_way_checkpoint(tmp_path):
    given = arguments(tmp_path, data={"setting": "transductive", "self_training_steps": 4}, max_steps=10)
    (first_model, first_data, first), (second_model, second_data, second) = stages_of(*given)
    assert (first_data.setting, first.max_steps, first.schedule_steps) == ("inductive", 6, 10)
    assert (second_data.setting, second.max_steps, second.schedule_steps) == ("transductive", 4, None)
    assert first_model.init_adapter is None
    assert second_model.init_adapter == first.output_dir == str(tmp_path / "inductive")
    assert second.output_dir == str(tmp_path)


def test_runs_of_one_stage(tmp_path):
    for setting in ("inductive", "fully_supervised"):
        given = arguments(tmp_path, data={"setting": setting}, max_steps=10)
        assert stages_of(*given) == [given]
    # A finished inductive run is the first stage.
    data, model = {"setting": "transductive"}, {"init_adapter": "there/checkpoint-5"}
    ((model_args, _, training),) = stages_of(*arguments(tmp_path, data=data, model=model, max_steps=10))
    assert (model_args.init_adapter, training.max_steps) == ("there/checkpoint-5", 5)


@pytest.mark.parametrize(("steps", "own"), [(-1, None), (10, 10)])
def test_stages_without_steps(tmp_path, steps, own):
    given = arguments(tmp_path, data={"setting": "transductive", "self_training_steps": own}, max_steps=steps)
    with pytest.raises(UsageError, match="max_steps"):
        stages_of(*given)


def test_the_next_commands_work_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").touch()
    for config, named in {"own.yaml": str(tmp_path / "own.yaml"), "zegclip_folder": "zegclip_folder"}.items():
        _print_next_commands([config, "--use_cpu"], "run")
        printed = capsys.readouterr().out
        assert f" eval {named} --model {tmp_path / 'run'} " in printed
        assert printed.count(str(tmp_path / "run")) == 3
