"""Files are there whole or not at all."""

import operator
import os
import signal
import tempfile
import time

import pytest

from zegclip.files import exiting_on_sigterm, new_folder, remove_leftovers, replacing, writing_to


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_leftovers_in_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(place):
        if place == tmp_path:
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with new_folder(tmp_path / "new") as folder:
        folder.mkdir()
    monkeypatch.undo()
    assert (tmp_path / "new").is_dir()


def test_what_was_there_stays_after_a_failure(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail():
        with replacing(path) as part:
            part.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def killed_in(context):
    """Let a child process be killed within a context, as if the power had gone."""
    process = os.fork()
    if process == 0:
        try:
            with context as folder:
                folder.mkdir(exist_ok=True)
                (folder / "half.txt").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_the_next_new_folder_removes_what_a_killed_one_has_left(tmp_path):
    killed_in(new_folder(tmp_path / "output"))
    [leftover] = tmp_path.iterdir()
    assert list(leftover.rglob("half.txt"))
    with new_folder(tmp_path / "output") as folder:
        folder.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_leftovers_are_removed_but_never_those_of_a_running_process(tmp_path):
    remove_leftovers(tmp_path / "missing")
    killed_in(writing_to(tmp_path))
    [leftover] = tmp_path.iterdir()
    assert [path.name for path in leftover.iterdir()] == ["half.txt"]
    machine, _, _ = leftover.name.rsplit("-", 2)
    of_another_machine = tmp_path / leftover.name.replace(machine, ".zegclip-elsewhere")
    old, of_the_user = tmp_path / ".zegclip-elsewhere-1-abc", tmp_path / "folder"
    for folder in (of_another_machine, old, of_the_user):
        folder.mkdir()
    for folder in (old, of_the_user):
        os.utime(folder, (0, 0))
    with writing_to(tmp_path) as ours:
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {ours, of_another_machine, of_the_user}


def write_files(output, text):
    with writing_to(output) as folder:
        for name in FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def texts_in(output):
    return {name: (output / name).read_text() for name in FILES if (output / name).is_file()}


FILES = ("a.json", "b.bin", "inside/c.bin", "inside/d.json", "z.txt")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("moved", range(len(FILES)))
def test_files_are_moved_all_or_none(tmp_path, monkeypatch, moved, links):
    """In subfolders too, where a whole folder could not be replaced."""
    write_files(tmp_path, "before")
    (tmp_path / "z.txt").unlink()
    before = texts_in(tmp_path)
    usual, calls = os.replace, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == moved + 1:
            raise PermissionError(13, "Permission denied", str(target))
        usual(source, target)

    def refuse(source, target):
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_once)
        if not links:
            patch.setattr(os, "link", refuse)
        with pytest.raises(PermissionError):
            write_files(tmp_path, "after")
    assert texts_in(tmp_path) == before
    write_files(tmp_path, "after")
    assert texts_in(tmp_path) == dict.fromkeys(FILES, "after")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.bin", "inside", "z.txt"}


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_kill_between_two_files_leaves_no_json_file_beside_mixed_ones(tmp_path, moved):
    write_files(tmp_path, "before")
    if (process := os.fork()) == 0:
        usual, calls = os.replace, []

        def kill(source, target):
            calls.append(target)
            if len(calls) == moved + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            usual(source, target)

        os.replace = kill
        try:
            write_files(tmp_path, "after")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    left = texts_in(tmp_path)
    assert left.keys() >= {"b.bin", "inside/c.bin", "z.txt"}
    assert not {"a.json", "inside/d.json"} <= left.keys()
    if {"a.json", "inside/d.json"} & left.keys():
        assert set(left.values()) == {"after"}
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.json", "b.bin", "inside", "z.txt"}


def test_a_file_in_the_place_of_a_folder_is_noticed_before_anything_is_moved(tmp_path):
    (tmp_path / "a.json").write_text("before")
    (tmp_path / "inside").write_text("before")
    with pytest.raises(OSError, match="inside"):
        write_files(tmp_path, "after")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "before", "inside": "before"}


@pytest.mark.parametrize(("moment", "left"), [("mkdtemp", []), ("TemporaryDirectory.cleanup", ["file.txt"])])
def test_sigterm_waits_while_a_temporary_folder_is_made_or_removed(tmp_path, monkeypatch, moment, left):
    usual = operator.attrgetter(moment)(tempfile)

    def interrupt(*args, **kwargs):
        if moment == "mkdtemp":
            made = usual(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # Python has time to call a handler.
        return made if moment == "mkdtemp" else usual(*args, **kwargs)

    monkeypatch.setattr(f"tempfile.{moment}", interrupt)
    with pytest.raises(SystemExit) as error, exiting_on_sigterm(), writing_to(tmp_path) as folder:
        (folder / "file.txt").write_text("whole")
    assert error.value.code == 143
    assert [path.name for path in tmp_path.iterdir()] == left


def test_leftovers_of_another_user_are_left_to_him(tmp_path, monkeypatch):
    path = tmp_path / ".zegclip-elsewhere-1-abc"
    path.write_text("")
    os.utime(path, (0, 0))

    def refuse(path):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    remove_leftovers(tmp_path)
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_a_file_that_cannot_be_put_back_leaves_no_json_file(tmp_path, monkeypatch):
    """Beside files of two states it would vouch for both."""
    write_files(tmp_path, "before")
    usual, calls = os.replace, []

    def fail_from_the_second_on(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise PermissionError(13, "Permission denied", str(target))
        usual(source, target)

    monkeypatch.setattr(os, "replace", fail_from_the_second_on)
    with pytest.raises(PermissionError):
        write_files(tmp_path, "after")
    assert not list(tmp_path.rglob("*.json"))


def test_several_processes_write_the_same_files(tmp_path):
    children = []
    for name in ("one", "two"):
        if (process := os.fork()) == 0:
            try:
                for _ in range(300):
                    write_files(tmp_path, name)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(process)
    assert [os.waitpid(process, 0)[1] for process in children] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.bin", "inside", "z.txt"}
