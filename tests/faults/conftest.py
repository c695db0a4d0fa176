"""A process that starts commands quickly, and a count of those that were killed."""

import pytest
from interrupted import SEED, STAGES, Runner, count_kills, kills


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Shared by all tests, as starting its process takes seconds."""
    runner = Runner(tmp_path_factory.mktemp("faults") / "log.txt")
    yield runner
    runner.close()


def pytest_terminal_summary(terminalreporter):
    """Print how many kills there were, of what and when."""
    if not kills:
        return
    terminalreporter.section(f"kills (again: ZEGCLIP_SEED={SEED})")
    for name, number in sorted({key[:2] for key in kills}):
        counts = ", ".join(f"{kills[name, number, stage]} {stage}" for stage in STAGES)
        terminalreporter.write_line(f"{name:<16}{number:<9}{counts}")
    terminalreporter.write_line(f"{count_kills()} before the end")
