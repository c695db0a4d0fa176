"""What tests of commands share: a picture, and commands that succeed or fail as they should."""

import numpy as np
import pytest
from PIL import Image

from zegclip.commands.main import main


@pytest.fixture
def noise():
    """A picture in which every label wins some pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))


@pytest.fixture
def picture(noise, tmp_path):
    noise.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def succeeds(capsys):
    """Run a command that must succeed without a word on stderr, and return its output."""

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        output, errors = capsys.readouterr()
        assert errors == ""
        return output

    return run


@pytest.fixture
def fails(capsys):
    """Run a command that must fail with one line with these words on stderr."""

    def run(arguments, *mentioned):
        assert main([str(argument) for argument in arguments]) == 1
        output, errors = capsys.readouterr()
        assert "Traceback" not in output + errors
        assert errors.startswith("zegclip: ")
        assert errors.count("\n") == 1
        for part in mentioned:
            assert str(part) in errors

    return run
