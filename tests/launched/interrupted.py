"""Commands that are interrupted: children of a process that has everything imported, see `forking.py`."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

FORKING = Path(__file__).with_name("forking.py")
SEED = os.environ.get("ZEGCLIP_SEED", str(random.SystemRandom().randrange(10**6)))
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
STAGES = ("before its first output", "in the middle", "after the end")
kills: Counter[tuple[str, str, str]] = Counter()


class Runner:
    """Starts commands, one at a time."""

    def __init__(self, log, **environment):
        self.log = log
        self.pid: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, str(FORKING)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | SINGLE_THREADED | environment,
        )
        assert self._answer() == "ready"

    def _answer(self):
        return self.process.stdout.readline().decode().strip()

    def start(self, *argv, **more):
        """Start a command and return the number of its process; what a failed test has left running is ended."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        request = {"argv": list(map(str, argv)), "log": str(self.log), **more}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pid = int(self._answer())
        return self.pid

    def wait(self, seconds=300.0):
        """Return the status, or `None` if it is still running after so many seconds."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            return None
        self.pid = None
        return int(self._answer())

    def run(self, *argv, expect=0, **more):
        """Run a command to its end and return what it has printed."""
        self.start(*argv, **more)
        status = self.wait()
        printed = self.log.read_text(errors="replace")
        assert status == expect, printed[-3000:]
        return printed

    def wait_for(self, condition, seconds=60.0):
        """Wait until something has come about while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            assert self.wait(0.002) is None, self.log.read_text()[-3000:]

    def kill(self, number, seconds):
        """Send a signal after some time. Return whether it found the process, its status, and its children."""
        status = self.wait(seconds)
        if status is not None:
            return False, status, []
        try:
            children = psutil.Process(self.pid).children(recursive=True)
            os.kill(self.pid, number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False, self.wait(), []
        return True, self.wait(), children

    def close(self):
        """End the parent of all."""
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def contents(folder):
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder):
    """Whatever is in a folder for a while only."""
    return [path for pattern in (".zegclip-*", "_unfinished-*") for path in Path(folder).rglob(pattern)]


class Chaos:
    """
    Kills one command over and over.

    Args:
        runner: Starts it.
        name: For the count of kills.
        scratch: Folder that it writes to, and to nothing outside.
        argv: The command, to be run undisturbed for a start; moments are chosen within the time that this takes.
        earliest: Share of that time in which nothing is done that a kill could spoil, such as loading a model.
    """

    def __init__(self, runner, name, scratch, argv, earliest=0.0):
        self.runner, self.name, self.scratch = runner, name, scratch
        start = time.monotonic()
        runner.run(*argv)
        seconds = time.monotonic() - start
        self.moments = (earliest * seconds, seconds)
        self.random = random.Random(f"{SEED} {name}")
        self.children = []

    def kill(self, number, *argv):
        """
        Start the command and send it a signal at a random moment.

        Returns:
            Whether it was killed before its end.
        """
        before, left = self.progress(), leftovers(self.scratch)
        self.runner.start(*argv)
        killed, status, children = self.runner.kill(number, self.random.uniform(*self.moments))
        self.children += children
        printed = self.runner.log.read_text(errors="replace")
        stage = STAGES[2] if not killed or status == 0 else STAGES[self.progress() != before]
        kills[self.name, signal.Signals(number).name, stage] += 1
        if stage == STAGES[2]:
            assert status == 0, printed[-3000:]
            self.moments = (self.moments[0], 0.9 * self.moments[1])  # The first run is the slowest.
            return False
        assert status in ((-number,) if number == signal.SIGKILL else (-number, 128 + number)), printed[-3000:]
        assert "Traceback" not in printed, printed[-3000:]
        if number == signal.SIGTERM:
            assert set(leftovers(self.scratch)) <= set(left), printed[-3000:]
        return True

    def progress(self):
        """Something that changes with each output."""
        return [(path, path.lstat().st_mtime_ns) for path in sorted(Path(self.scratch).rglob("*")) if path.exists()]

    def check_orphans(self):
        """Data loaders' workers look every five seconds whether their parent is there."""
        _, alive = psutil.wait_procs(self.children, timeout=15)
        assert not alive


def count_kills():
    """How many found a command at work."""
    return sum(count for (_, _, stage), count in kills.items() if stage != STAGES[2])
