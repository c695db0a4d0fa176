"""Killed at any moment, over and over, and started again with the same command: nothing is lost, torn or left."""

import json
import shutil
import signal

import numpy as np
import pytest
from hub_stand_in import serve_hub
from interrupted import Chaos, Runner, contents, count_kills, kills, leftovers
from PIL import Image
from small_run import DATA, SMALL, options, read_weights

pytestmark = pytest.mark.slow
TRAIN = ["train.py", *options(**SMALL | {
    "num_train_pictures": 7, "num_eval_pictures": 1, "max_steps": 12, "save_strategy": "steps", "save_steps": 2,
    "save_total_limit": 2, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 6, "dataloader_num_workers": 1,
})]  # fmt: skip
EVAL = ["eval.py", *options(**DATA | {"num_eval_pictures": 6, "save_predictions": True})]
ENOUGH = 14
"""Kills of each command."""


@pytest.fixture
def chaos(runner):
    """Make a [`Chaos`] of a command."""
    made = []

    def make(name, scratch, argv, runner=runner, earliest=0.0):
        made.append(Chaos(runner, name, scratch, argv, earliest))
        return made[-1]

    yield make
    for one in made:
        one.check_orphans()


def in_turn():
    """The signals of `ENOUGH` kills, SIGKILL and SIGTERM in turn."""
    return [(signal.SIGKILL, signal.SIGTERM)[index % 2] for index in range(ENOUGH)]


def disturb(command, words, output, *, times, done=lambda: set()):
    """
    Kill a command `ENOUGH` times, and yield whenever it has then been run to its end.

    Args:
        command: A [`Chaos`].
        words: The command.
        output: What it writes; removed before the next run.
        times: How often a run is killed, to choose from: some runs once, others again and again.
        done: Returns the set of what is finished; none of it may be done again.
    """
    left = in_turn()
    while left:
        for _ in range(command.random.choice(times)):
            before = done()
            if left and command.kill(left[0], *words):
                left.pop(0)
            assert before <= done()
        command.runner.run(*words)
        assert before <= done()
        yield
        shutil.rmtree(output)


def test_training(chaos, clip_folder, tmp_path):
    words = [*TRAIN, "--model", clip_folder, "--output_dir"]
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    training = chaos("train.py", output, [*words, undisturbed])
    for _ in disturb(training, [*words, output], output, times=[1, 2, 4]):
        assert read_weights(output) == read_weights(undisturbed)
        assert {path.name for path in output.iterdir()} == {path.name for path in undisturbed.iterdir()}


def test_evaluation(chaos, tmp_path):
    words = [*EVAL, "--results_dir"]
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    evaluation = chaos("eval.py", output, [*words, undisturbed])
    expected = contents(undisturbed)
    done = lambda: set(enumerate(counted(output)))
    for _ in disturb(evaluation, [*words, output], output, times=[1, 2, 4], done=done):
        assert sorted(counted(output)) == list(range(6))
        found = contents(output)
        assert found.keys() == expected.keys()
        for name in found:
            assert found[name] == expected[name] or "counts-" in name, name


def counted(folder):
    """The pictures in the order that they were counted in."""
    path = folder / "model" / "counts-00000.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["picture"] for line in lines if line.endswith("}}")]


def test_segmentation(chaos, model_folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        Image.fromarray(rng.integers(256, size=(60, 90, 3), dtype=np.uint8)).save(pictures / f"{index}.png")
    words = ["zegclip", "segment", pictures, "--labels", "cat, tree", "--model", model_folder, "--output"]
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    segmentation = chaos("zegclip segment", output, [*words, undisturbed])
    expected = contents(undisturbed)
    done = lambda: set(states(output).items())
    for _ in disturb(segmentation, [*words, output], output, times=[1, 1, 2], done=done):
        assert contents(output) == expected
        assert not leftovers(output)


def states(folder):
    """The results of the pictures that are finished, and when they were written."""
    return {
        path: path.stat().st_mtime_ns
        for finished in folder.glob("*.json")
        for path in folder.glob(f"{finished.stem}[._]*")
    }


def test_export(chaos, model_folder, tmp_path):
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "place").mkdir()
    output = tmp_path / "place" / "shared"
    words = ["zegclip", "export", model_folder]
    export = chaos("zegclip export", output.parent, [*words, tmp_path / "undisturbed" / "shared"], earliest=0.4)
    expected = contents(tmp_path / "undisturbed")
    left = in_turn()
    while left:
        if export.kill(left[0], *words, output):
            left.pop(0)
        if not output.exists():
            export.runner.run(*words, output)
        assert contents(output.parent) == expected
        shutil.rmtree(output)


def test_push(chaos, model_folder, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serve_hub() as hub:
        environment = {**hub.environment(), "HF_HOME": str(tmp_path / "home"), "TRANSFORMERS_OFFLINE": "0"}
        runner = Runner(tmp_path / "log.txt", TMPDIR=str(temporary), **environment)
        words = ["zegclip", "push", model_folder, "someone/model"]
        push = chaos("zegclip push", temporary, words, runner, earliest=0.4)
        expected = hub.repositories["someone/model"][-1]
        progress = push.progress
        push.progress = lambda: (progress(), len(hub.requests))
        left = in_turn()
        while left:
            hub.repositories.clear()
            hub.large_files.clear()
            if push.kill(left[0], *words):
                left.pop(0)
            commits = list(hub.repositories.get("someone/model", [{}]))
            assert commits in ([{}], [{}, expected])
            runner.run(*words)
            assert hub.repositories["someone/model"] == [*commits, expected]
            assert not list(temporary.iterdir())
        runner.close()


def test_that_there_were_enough():
    if len({name for name, _, _ in kills}) < 5:
        pytest.skip("only some of the commands were killed")
    assert count_kills() >= 50
