"""
What all fuzzing shares: a few fixed cases or many random ones, what counts as a refusal of ours, and a count of both.

A property draws a case, runs real code on it, checks the answer if there is one, and says whether there was. What it
may not meet is an error from somewhere else, a hang, or anything left half written.
"""

import faulthandler
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

from zegclip.commands.main import main
from zegclip.segmenting.segmenter import load_segmenter

ROOT = Path(__file__).parents[2]
OWN_CODE = ("zegclip", "modeling", "processing", "picture_world")
LIMIT = 60  # Seconds for a case, which takes a fraction of one.
COUNTS = pytest.StashKey[Counter]()

# The folder of the tests' other caches, which is removed at the end.
set_hypothesis_home_dir(os.environ["HF_HOME"])


def pytest_configure(config):
    config.stash[COUNTS] = Counter()


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash[COUNTS]
    if not counts:
        return
    terminalreporter.section("cases of fuzzing")
    for kind in sorted({kind for kind, _ in counts}):
        answered, refused = counts[kind, True], counts[kind, False]
        terminalreporter.line(f"{kind}: {answered + refused} cases, {answered} answered, {refused} refused")
    terminalreporter.line(f"{sum(counts.values())} cases in all")


@contextmanager
def at_most(seconds):
    """Fail where something takes longer; end the process, with all its stacks, where it does not even notice that."""

    def complain(number, frame):
        pytest.fail(f"a case took longer than {seconds} seconds:\n{''.join(traceback.format_stack(frame))}")

    before = signal.signal(signal.SIGALRM, complain)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(5 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def check_refusal(error, *names):
    """Make sure that an error is one clear sentence of ours, or the system's own about a file."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = "".join(traceback.format_exception(error))
    if isinstance(error, OSError) and error.strerror and error.filename:
        return
    place = Path(frame.filename)
    ours = place.is_relative_to(ROOT) and place.relative_to(ROOT).parts[0] in OWN_CODE
    assert ours, f"not an error of ours:\n{said}"
    assert str(frame.line).startswith("raise"), f"an error by chance:\n{said}"
    assert isinstance(error, (ValueError, TypeError, OSError)), said
    check_sentence(str(error), *names)


def check_sentence(text, *names):
    assert text.strip(), "an error without a word"
    assert len(text.splitlines()) == 1, f"more than one line: {text!r}"
    for name in names:
        assert str(name) in text, f"{name} is not named in {text!r}"


class Fuzz:
    """Runs properties and commands."""

    def __init__(self, many, counts, capfd, caplog):
        self.many = many
        self.counts = counts
        self.capfd = capfd
        self.caplog = caplog

    def run(self, kind, case, check, *, few=15, many=200):
        """
        Check a property.

        Args:
            kind: What to count the cases under.
            case: Strategy.
            check: Takes a case, and returns whether it was answered.
            few: Cases of the fast suite, always the same.
            many: Cases of the slow one, always others.
        """

        @settings(
            max_examples=many if self.many else few,
            derandomize=not self.many,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case)
        def property_of(case):
            with at_most(LIMIT):
                answered = check(case)
            assert isinstance(answered, bool)
            self.counts[kind, answered] += 1

        property_of()

    def attempt(self, call, *names, fields=()):
        """
        Return what a call gives, or `None` if it refuses in one sentence of ours with these names in it.

        Args:
            call: Without arguments.
            names: All of them must be in the sentence.
            fields: Of a configuration, one of which must be in it; for a wrong type, it is huggingface_hub's sentence.
        """
        try:
            return call()
        except Exception as raised:
            error = raised
        if not fields or not isinstance(error, StrictDataclassError):
            check_refusal(error, *names)
        assert not fields or any(name in str(error) for name in fields), error
        return None

    def segment(self, folder, picture, *names):
        """Return ids and scores, each `(height, width)`, of a model folder; `None` if it refuses as above."""
        segmenter = self.attempt(lambda: load_segmenter(folder, "cpu"), *names)
        found = segmenter and self.attempt(lambda: segmenter(picture, candidate_labels=["a", "b"]))
        if found is None:
            return None
        ids, scores = found["segmentation"], found["scores"]
        assert ids.shape == scores.shape == picture.size[::-1]
        assert np.isfinite(scores).all()
        return ids, scores

    def command(self, *arguments, silent_failure=False, expected=()):
        """
        Run `zegclip`; return whether it succeeded, what it printed, and its complaints without `zegclip: `.

        Where it fails it complains, but for a command whose output says what is wrong. Warnings end as `expected`.
        """
        self.capfd.readouterr()
        self.caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for unseen in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", unseen)
            status = main([str(argument) for argument in arguments])
        assert [text for text in (str(warning.message) for warning in warned) if not text.endswith(expected)] == []
        assert self.caplog.messages == []
        output, errors = self.capfd.readouterr()
        lines = errors.splitlines()
        assert status in (0, 1)
        assert "Traceback" not in output + errors
        assert all(line.startswith("zegclip: ") for line in lines), errors
        lines = [line.removeprefix("zegclip: ") for line in lines]
        assert bool(lines) == bool(status) or (silent_failure and status), errors
        return status == 0, output, lines


@pytest.fixture(params=["fixed", pytest.param("random", marks=pytest.mark.slow)])
def fuzz(request, capfd, caplog):
    return Fuzz(request.param == "random", request.config.stash[COUNTS], capfd, caplog)


@pytest.fixture
def segment(model_folder):
    """Segment a picture: `(ids, scores)`, each `(height, width)`."""
    segmenter = load_segmenter(model_folder, "cpu")

    def run(picture, labels):
        result = segmenter(picture, candidate_labels=labels)
        return result["segmentation"], result["scores"]

    return run


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
