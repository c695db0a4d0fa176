"""Segmentation of many pictures: what is found, written, known to be finished and shared by processes."""

import functools
import io
import json
import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from zegclip import segmenting
from zegclip.commands.main import main
from zegclip.errors import UsageError
from zegclip.identity import file_state
from zegclip.processing.image_reading import load_class_ids
from zegclip.segmenting.pictures import find_pictures, name_results
from zegclip.segmenting.processes import Processes
from zegclip.segmenting.results import find_unfinished, write_results
from zegclip.segmenting.segmenter import Outcome, load_segmenter, segment_pictures

LABELS = ["cat", "tree", "b", "umbrella"]


def noise(height=40, width=90, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(["one.png", "two.jpg"]):
        noise(seed=seed).save(folder / name)
    return folder


def test_results_are_those_of_the_pipeline(model_folder, pictures, tmp_path):
    segmenter = load_segmenter(model_folder, "cpu")
    paths = find_pictures([pictures])
    outcome = segment_pictures(segmenter, dict(name_results(paths)), LABELS, tmp_path / "results", "name")
    assert outcome == Outcome(segmented=2)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(
        f"{stem}{end}" for stem in ("one", "two") for end in ("_overlay.png", "_mask.png", ".json")
    )
    usual = pipeline("zero-shot-image-segmentation", model=str(model_folder), device="cpu")
    for path in map(Path, paths):
        expected = usual(str(path), candidate_labels=LABELS)
        ids = load_class_ids(tmp_path / "results" / f"{path.stem}_mask.png")
        record = json.loads((tmp_path / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
        assert len(np.unique(ids)) > 1
        fields = {
            "image": str(path),
            "image_file": file_state(path),
            "model": "name",
            "model_files": "",
            "settings": {},
        }
        assert record == {**fields, "formats": ["overlay", "png"], "labels": record["labels"]}
        for index, (row, result) in enumerate(zip(record["labels"], expected, strict=True)):
            mask = np.asarray(result["mask"]) == 255
            np.testing.assert_array_equal(ids == index, mask)
            assert row["label"] == result["label"]
            assert row["share"] == pytest.approx(mask.mean(), abs=1e-6)
            assert row["score"] == pytest.approx(result["score"], abs=2e-6)


@pytest.mark.parametrize(
    "step", ["segmenter.load_rgb", "results.summarise", "results.draw", "segmenter.ProgressPipeline.preprocess"]
)
def test_a_picture_without_room_is_one_failure(model_folder, pictures, tmp_path, monkeypatch, step):
    """In whatever step; the others have their results."""
    noise(width=50).save(pictures / "one_more.png")
    paths = dict(name_results(find_pictures([pictures])))
    segmenter = load_segmenter(model_folder, "cpu")
    usual, calls = operator.attrgetter(step)(segmenting), []

    def refuse_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory") if ids_known else MemoryError("no room")
        return usual(*args, **kwargs)

    ids_known = step.startswith("results")
    monkeypatch.setattr(f"zegclip.segmenting.{step}", refuse_the_second)
    outcome = segment_pictures(segmenter, paths, LABELS, tmp_path / "results", "name")
    assert outcome.segmented == 2
    [failure] = outcome.failures
    assert "no room" in failure or "can't allocate memory" in failure
    assert {path.stem for path in (tmp_path / "results").glob("*.json")} == {"one", "two"}
    assert not list((tmp_path / "results").glob("one_more*"))


@pytest.mark.parametrize(
    ("settings", "total"),
    [({"window_size": 16}, 21), ({"window_size": 16, "training_free_weight": 0.5}, 42), ({"window_size": None}, 0)],
    ids=str,
)
@pytest.mark.parametrize("show", [True, False])
def test_windows_of_one_picture_are_counted_on_a_terminal(
    model_folder, pictures, tmp_path, monkeypatch, settings, total, show
):
    """In both passes, if there are two."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(segmenting.segmenter, "_DELAY", 0)
    monkeypatch.setattr(
        segmenting.segmenter, "tqdm", functools.partial(segmenting.segmenter.tqdm, mininterval=0, miniters=1)
    )
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    segmenter = load_segmenter(model_folder, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        paths = {str(pictures / "one.png"): "one"}
        segment_pictures(segmenter, paths, LABELS, tmp_path / "results", "name", show_progress=show, **settings)
        shown = re.findall(r"(\d+)/(\d+)", sys.stderr.getvalue())
    counts = [int(count) for count, of in shown]
    assert counts == sorted(counts)
    assert {int(of) for count, of in shown} == ({total} if total and show else set())
    if counts:
        assert counts[-1] == total
        assert len(set(counts)) > total / 8  # the windows of a forward pass
    assert not any(module._forward_hooks for module in segmenter.model.modules())


def test_settings_reach_the_pipeline(model_folder, pictures, tmp_path):
    segmenter = load_segmenter(model_folder, "cpu")
    paths = {str(pictures / "one.png"): "one"}
    segment_pictures(segmenter, paths, LABELS, tmp_path / "none", "name", threshold=1.0)
    assert (load_class_ids(tmp_path / "none" / "one_mask.png") == 255).all()
    segment_pictures(segmenter, paths, LABELS, tmp_path / "usual", "name")
    segment_pictures(segmenter, paths, LABELS, tmp_path / "windows", "name", window_size=16)
    usual, windows = (load_class_ids(tmp_path / name / "one_mask.png") for name in ("usual", "windows"))
    assert (usual != windows).any()
    assert json.loads((tmp_path / "windows" / "one.json").read_text())["settings"] == {"window_size": 16}


@pytest.mark.parametrize("recursive", [True, False])
def test_formats_that_are_not_read_are_named(tmp_path, recursive):
    for name in ("a.jpg", "b.HEIC", "c.dng"):
        (tmp_path / name).write_bytes(b"not looked at")
    with pytest.warns(UserWarning, match=r"b\.HEIC.*2 in all"):
        assert find_pictures([tmp_path], recursive) == [str(tmp_path / "a.jpg")]


def test_pictures_are_found_in_folders_once(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "notes.txt", ".hidden.png", "e.json"):
        (tmp_path / name).write_bytes(b"not looked at")
    (tmp_path / "deeper.png").mkdir()
    found = find_pictures([tmp_path / "c.webp", str(tmp_path), tmp_path / "missing.xyz", tmp_path / "." / "a.jpeg"])
    assert found == [str(tmp_path / name) for name in ("c.webp", "a.jpeg", "b.PNG", "missing.xyz")]
    with pytest.raises(UsageError, match="deeper"):
        find_pictures([tmp_path / "deeper.png"])


def test_links_lead_to_the_same_picture(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "b.png").write_bytes(b"not looked at")
    (tmp_path / "pictures" / "a.png").symlink_to("b.png")
    (tmp_path / "linked").symlink_to("pictures")
    monkeypatch.chdir(tmp_path / "pictures")
    # The first name that leads to a picture is kept, and it is a path from where the command was called.
    assert find_pictures(["."]) == ["a.png"]
    assert find_pictures(["b.png", "../linked", tmp_path / "pictures"]) == ["b.png"]
    assert find_pictures(["../linked/", "."]) == ["../linked/a.png"]
    # Folders that links lead to are looked into once, also if they lead back.
    (tmp_path / "pictures" / "back").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.png").write_bytes(b"not looked at")
    assert find_pictures(["."], recursive=True) == ["a.png", "back/elsewhere/c.png"]
    (tmp_path / "elsewhere" / "a").symlink_to("z")
    (tmp_path / "elsewhere" / "z").mkdir()
    (tmp_path / "elsewhere" / "z" / "d.png").write_bytes(b"not looked at")
    assert find_pictures(["../elsewhere"], recursive=True) == ["../elsewhere/c.png", "../elsewhere/z/d.png"]
    # Links that lead nowhere are not passed over.
    (tmp_path / "pictures" / "dangling.png").symlink_to("nothing.png")
    (tmp_path / "pictures" / "loop.png").symlink_to("loop.png")
    assert find_pictures(["."]) == ["a.png", "dangling.png", "loop.png"]


def test_equal_stems_get_numbers(tmp_path):
    paths = [f"{tmp_path}/{name}" for name in ("cat.png", "cat.jpg", "x/cat.png", "cat_2.png", "Cat.gif", "dog.png")]
    assert list(name_results(paths)) == list(
        zip(paths, ["cat", "cat_2", "cat_3", "cat_2_2", "Cat_4", "dog"], strict=True)
    )
    # In no time, too.
    names = [name for _, name in name_results([f"video_{number}/frame.png" for number in range(100_000)])]
    assert names == ["frame", *(f"frame_{number}" for number in range(2, 100_001))]


def test_pictures_that_were_moved_keep_their_results(model_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    noise().save(first / "a.png")
    segmenter, results = load_segmenter(model_folder, "cpu"), tmp_path / "results"

    def segment(folder):
        paths = dict(name_results(find_pictures([folder]), results))
        segment_pictures(segmenter, paths, LABELS, results, "name")
        return list(paths.values())

    assert segment(first) == ["a"]
    first.rename(second)
    assert segment(second) == ["a"]
    first.mkdir()
    noise(seed=1).save(first / "a.png")  # another picture
    assert segment(first) == ["a_2"]
    assert sorted(path.name for path in results.glob("*.json")) == ["a.json", "a_2.json"]


def test_any_file_name_gets_results(model_folder, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    # As long as file systems allow, such as a web address; and bytes that are no text.
    names = [b"x" * 251 + b".png", b"x" * 250 + b"y.png", "猫".encode() * 83 + b".png", b"\xff.png"]
    for name in names:
        noise().save(folder / os.fsdecode(name), format="png")
    paths = dict(name_results(find_pictures([folder])))
    segmenter = load_segmenter(model_folder, "cpu")
    assert segment_pictures(segmenter, paths, LABELS, tmp_path / "results", "name") == Outcome(segmented=4)
    assert len(list((tmp_path / "results").iterdir())) == 12
    assert find_unfinished(paths, LABELS, tmp_path / "results", "name") == {}


def write(folder, label):
    result = {"segmentation": np.zeros((40, 90), dtype=np.int64), "scores": np.ones((40, 90)), "labels": [label]}
    write_results(folder, "x", noise(), result, {})


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path, "cat")
    before = contents(tmp_path)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("zegclip.segmenting.results.index_mask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "tree")
    assert contents(tmp_path) == before


def test_the_device_is_kept_among_several_processes(model_folder):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        segmenter = load_segmenter(model_folder, "meta")
    finally:
        torch.distributed.destroy_process_group()
    assert segmenter.device.type == segmenter.model.device.type == "meta"


def test_processes_share_the_accelerators(monkeypatch):
    processes = Processes()
    assert (processes.count, processes.rank, processes.is_main) == (1, 0, True)
    assert processes.choose_device(None) is None
    assert processes.choose_device("cuda") == "cuda"
    processes.count, processes.local_rank = 8, 5
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert processes.choose_device(None) == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert processes.choose_device(None) == "xpu:1"
    assert processes.choose_device("cuda") == "cuda:1"
    assert processes.choose_device("cuda:3") == "cuda:3"
    assert processes.choose_device("cpu") == "cpu"


@pytest.fixture
def finished(model_folder, pictures, tmp_path):
    """Results of all pictures, and the arguments with which they count as finished."""
    paths = dict(name_results(find_pictures([pictures])))
    segmenter = load_segmenter(model_folder, "cpu")
    segment_pictures(segmenter, paths, LABELS, tmp_path / "results", "name", "files", threshold=0.1)
    usual = {"pictures": paths, "labels": LABELS, "output": tmp_path / "results"}
    return {**usual, "model_name": "name", "model_state": "files", "threshold": 0.1}


def test_finished_pictures_are_known(finished, monkeypatch):
    assert find_unfinished(**finished) == {}
    folder = Path(next(iter(finished["pictures"]))).parent
    monkeypatch.chdir(folder.parent)
    # The same pictures by another name, but not others by the same name.
    assert find_unfinished(**finished | {"pictures": {"pictures/one.png": "one"}}) == {}
    monkeypatch.chdir(folder)
    assert find_unfinished(**finished | {"pictures": {"pictures/one.png": "one"}}) == {"pictures/one.png": "one"}


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": LABELS[:-1]},
        {"labels": LABELS[::-1]},
        {"model_name": "other"},
        {"model_state": "other files"},
        {"threshold": 0.2},
        {"window_size": 16},
        {"output": Path("nowhere")},
    ],
)
def test_another_command_does_pictures_again(finished, changes):
    assert find_unfinished(**finished | changes) == finished["pictures"]


def test_a_link_to_another_picture_makes_it_unfinished(model_folder, pictures, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(pictures / "one.png")
    paths = {str(link): "link"}
    segment_pictures(load_segmenter(model_folder, "cpu"), paths, LABELS, tmp_path / "results", "name")
    assert find_unfinished(paths, LABELS, tmp_path / "results", "name") == {}
    link.unlink()
    link.symlink_to(pictures / "two.jpg")
    assert find_unfinished(paths, LABELS, tmp_path / "results", "name") == paths


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def replace_by_older(path):
    """As an archive would be unpacked over it, or another file moved there."""
    noise(seed=7).save(path.with_suffix(".other.png"))
    os.utime(path.with_suffix(".other.png"), (0, 0))
    path.with_suffix(".other.png").replace(path)


def rewrite_unnoticed(path):
    """With the size and the time that it had."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pictures/one.png", replace_by_older),
        ("pictures/one.png", rewrite_unnoticed),
        ("results/one.json", lambda path: path.write_text(path.read_text().replace('"image_file"', '"other"'))),
        ("pictures/one.png", lambda path: os.utime(path, (time.time() + 10, time.time() + 10))),
        ("pictures/one.png", Path.unlink),
        ("results/one_mask.png", Path.unlink),
        ("results/one_overlay.png", lambda path: path.write_bytes(b"")),
        ("results/one.json", Path.unlink),
        ("results/one.json", cut),
        ("results/one.json", lambda path: path.write_text("[]")),
        ("results/one.json", lambda path: path.write_bytes(b"\xff")),
        ("results/one.json", lambda path: path.write_text(path.read_text().replace('"label"', '"name"'))),
        ("results/one.json", lambda path: path.write_bytes(path.with_stem("two").read_bytes())),
    ],
)
def test_a_changed_file_makes_a_picture_unfinished(finished, tmp_path, name, change):
    change(tmp_path / name)
    assert list(find_unfinished(**finished).values()) == ["one"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_all_files_are_there(tmp_path, monkeypatch, number):
    replace, received = os.replace, []

    def replace_and_interrupt(source, target):
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # Python has time to call a handler.
        assert received == []
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    usual = signal.signal(number, lambda *arguments: received.append(arguments))
    try:
        write(tmp_path, "cat")
    finally:
        signal.signal(number, usual)
    assert len(received) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x_mask.png", "x_overlay.png"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(folder):
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


@pytest.fixture
def many_pictures(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(12):
        noise(seed=seed).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture
def in_the_foreground():
    """A shell lets what it starts in the background, these tests for instance, ignore SIGINT."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on(model_folder, many_pictures, tmp_path, monkeypatch, number, status):
    arguments = ["segment", str(many_pictures), "--labels", "cat, tree", "--model", str(model_folder), "--output"]
    assert main([*arguments, str(tmp_path / "undisturbed")]) == 0
    replace, output = os.replace, tmp_path / "results"

    def replace_and_interrupt(source, target):
        replace(source, target)
        if Path(target).name == "02_mask.png":
            os.kill(os.getpid(), number)

    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    with pytest.raises(SystemExit) as error:
        sys.exit(main([*arguments, str(output)]))
    monkeypatch.undo()
    assert error.value.code == status
    assert signal.getsignal(signal.SIGTERM) == usual
    before = states(output)
    assert len(before) in (9, 12)  # The last picture's may have been segmented meanwhile.
    (output / ".zegclip-elsewhere-1-abc").mkdir()
    os.utime(output / ".zegclip-elsewhere-1-abc", (0, 0))
    assert main([*arguments, str(output)]) == 0
    assert contents(output) == contents(tmp_path / "undisturbed")
    assert before.items() <= states(output).items()


SEVERAL_COMMANDS = """
import json, os, sys
from pathlib import Path
from zegclip.commands.main import main

folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
statuses = [main([part.replace("RANK", os.environ["RANK"]) for part in command]) for command in commands]
(folder / f"statuses_{os.environ['RANK']}.json").write_text(json.dumps(statuses))
sys.exit(statuses[-1])
"""


def test_two_processes_share_pictures(model_folder, many_pictures, tmp_path):
    (tmp_path / "several_commands.py").write_text(SEVERAL_COMMANDS)
    (tmp_path / "bad.png").write_text("not a picture")

    def command(pictures, output):
        pictures = [str(path if path.is_absolute() else many_pictures / path) for path in map(Path, pictures)]
        return ["segment", *pictures, "--labels", "cat, tree", "--model", str(model_folder), "--output", output]

    three, one = ["00.png", "01.png", "02.png"], ["03.png"]
    # The second process has the bad picture, and one more.
    bad = [*three[:1], tmp_path / "bad.png", *three[1:], *one]
    commands = [
        command(three, "several"),
        command(one, "one"),
        command(["RANK.png", "09.png"], "different"),
        command(bad, "several"),
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "several_commands.py"]
    run = subprocess.run(
        [sys.executable, *launcher, tmp_path, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    statuses = [json.loads((tmp_path / f"statuses_{rank}.json").read_text()) for rank in (0, 1)]
    # Where the pictures are bad, one process must not end the others; where they differ, none goes on.
    assert statuses == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert run.stdout.count("done before") == 1
    # What both processes print at once may come on one line.
    assert run.stderr.count("different lists of pictures") == 2
    assert len([line for line in run.stderr.splitlines() if line.startswith(f"zegclip: {tmp_path}/bad.png")]) == 1
    for pictures, output in (([*three, *one], "several"), (one, "one")):
        alone = tmp_path / f"{output}_alone"
        main(command(pictures, str(alone)))
        assert contents(alone) == contents(tmp_path / output)
    assert not (tmp_path / "different").exists()
