"""How the tests of this folder call the command."""

import pytest

from zegclip.commands.main import main


@pytest.fixture
def run(tmp_path, capsys):
    """Import a folder of the test: returns the exit status and what was printed."""

    def run(*words, source="source", target="target"):
        capsys.readouterr()
        words = [tmp_path / source, tmp_path / target, *words]
        status = main(["import", *map(str, words), "--workers", "0"])
        return status, "".join(capsys.readouterr())

    return run
