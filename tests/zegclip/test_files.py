"""Files are there whole or not at all."""

import pytest

from zegclip.files import replacing


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


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
