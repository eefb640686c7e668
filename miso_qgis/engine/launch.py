"""The engine for the plugin: ``python -I launch.py JOB.json``.

JSON lines on stdout (see ``messages``), logs on stderr. The run ends when stdin closes, which works on every system and
also when the parent was killed. Isolated mode leaves the plugin's folder off the search path, so it is added here; at
the end, because beside it lie folders of other plugins that must not shadow anything.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

# How long a run may take to stop by itself after stdin has closed; then the process ends itself.
_GRACE_S = 1.2
# At most this many progress lines a second cross the pipe.
_LINES_PER_S = 10.0


class _Lines:
    """Progress over JSON lines. Safe to use from several threads."""

    def __init__(self, stream: TextIO, messages: Any, errors: Any) -> None:  # noqa: ANN401  # reason: modules
        self._stream, self._messages, self._errors = stream, messages, errors
        self._lock = threading.Lock()
        self._last = ("", 0.0)
        self.cancelled = threading.Event()

    def send(self, event: Any) -> None:  # noqa: ANN401  # reason: one of messages.EVENTS
        """Write one line; a reader that has gone means that the run has to stop."""
        line = self._messages.write_event(event) + "\n"
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                self.cancelled.set()

    def report(self, done: float, total: float, text: str = "") -> None:
        now = time.monotonic()
        if text.split(":")[0] != self._last[0] or now - self._last[1] >= 1.0 / _LINES_PER_S:
            self._last = (text.split(":")[0], now)
            self.send(self._messages.Progress(float(done), float(total), text))

    def note(self, level: str, text: str) -> None:
        self.send(self._messages.Note(level, text))

    def raise_if_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise self._errors.Cancelled


def _take_stdout() -> TextIO:
    """Keep stdout for the messages: whatever libraries print to it goes to stderr from now on."""
    private = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(private, "w", encoding="ascii", newline="\n")


def _watch_stdin(lines: _Lines, finished: threading.Event, places: list[Path], remove: Any) -> None:  # noqa: ANN401
    """Wait until stdin closes; then ask the run to stop, and end the process if it does not."""
    try:
        while os.read(0, 4096):
            continue
    except OSError:
        lines.cancelled.set()
    lines.cancelled.set()
    if not finished.wait(_GRACE_S):
        for place in places:
            remove(place)
        # Nothing may be printed here: the parent may be gone, and a broken pipe would keep the process alive.
        os._exit(3)


def main(arguments: list[str]) -> int:
    """Run the job of a file and return the exit status."""
    stream = _take_stdout()
    folder = Path(__file__).resolve()
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder.parent]
    sys.path.append(str(folder.parents[2]))
    package = f"{folder.parents[1].name}.{folder.parents[0].name}"
    errors = importlib.import_module(f"{package}.errors")
    messages = importlib.import_module(f"{package}.messages")
    lines = _Lines(stream, messages, errors)
    finished = threading.Event()
    try:
        job = _read_job(arguments, errors, messages)
        cli = importlib.import_module(f"{package}.cli")
        cli.forget_foreign_paths()
        remove = importlib.import_module(f"{package}.outputs").remove_own
    except ImportError as error:
        found = f"a package cannot be loaded ({error})."
        problem = errors.Problem("Engine environment", found, "", "Set the engine up again.")
        lines.send(messages.Failure("failure", [problem]))
        return 1
    except errors.MisoError as error:
        lines.send(messages.Failure(error.code, error.problems))
        return int(error.exit_code)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: lines.cancelled.set())
    watch = (lines, finished, _places(job), remove)
    threading.Thread(target=_watch_stdin, args=watch, daemon=True, name="stdin").start()
    try:
        result = cli.run(job, lines)
    except (Exception, KeyboardInterrupt) as error:  # reason: the outermost edge; every failure becomes a message
        failure, status = cli.failure_of(error)
        finished.set()
        lines.send(failure)
        return int(status)
    finished.set()
    lines.send(result)
    return 0


def _read_job(arguments: list[str], errors: Any, messages: Any) -> Any:  # noqa: ANN401
    needed = "The path of a job file is needed: launch.py JOB.json."
    if len(arguments) != 1:
        raise errors.InputError("Job", f"{len(arguments)} arguments were given.", needed)
    try:
        return messages.read_job(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"it cannot be used ({error})."
        raise errors.InputError(f'Job file "{arguments[0]}"', found, "A job of this version is needed.") from error


def _places(job: Any) -> list[Path]:  # noqa: ANN401
    """Return the folders in which the job makes its working folders."""
    paths = [Path(path).parent for path in getattr(job, "outputs", {}).values()]
    paths += [Path(job.output_dir)] if hasattr(job, "output_dir") else []
    paths += [Path(job.disagreement).parent] if hasattr(job, "disagreement") else []
    return list(dict.fromkeys(paths))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    # Worker threads of libraries have nothing left to say; a broken pipe must not turn success into failure.
    os._exit(status)
