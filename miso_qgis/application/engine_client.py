"""The plugin's end of the process boundary: starts the engine, reads what it says, explains how it ended.

One :class:`EngineRun` is one child process and one job. The same object serves the main thread, where Qt's event loop
delivers its signals, and a worker thread without an event loop, where :func:`run_job` waits and polls. The child ends
when its standard input closes, so it can never outlive QGIS; one that does not end in time is killed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Deque, List, Optional, Sequence, Tuple

from qgis.core import QgsApplication, QgsProcessingFeedback
from qgis.PyQt.QtCore import QObject, QProcess, QProcessEnvironment, QTimer, pyqtSignal

from ..engine.errors import Cancelled, InputError, MisoError, ModelFolderError, OutputError, RuntimeFailure
from ..engine.messages import Failure, Job, Note, Progress, Result, read_event, write_job
from ..engine.schema import SchemaError
from .folders import LAUNCHER

POLL_MS = 100
GRACE_S = 1.5  # from closing stdin to the kill: a run is to be over 2 s after Cancel
START_TIMEOUT_MS = 30_000
LOG_LINES_KEPT = 200

# Measured one by one: PROJ_* break the engine's PROJ, PYTHONHOME kills its interpreter, PYTHONPATH puts QGIS's numpy
# before its own. The rest belongs to the QGIS installation and can only do harm in another Python.
_FOREIGN_PREFIXES = ("PYTHON", "PROJ_", "GDAL_", "OGR_", "QGIS_", "QT_", "OSGEO4W_", "GRASS_", "__PYVENV")
_LIBRARY_PATHS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH")
_ERRORS = {kind.code: kind for kind in (InputError, ModelFolderError, OutputError, RuntimeFailure, Cancelled)}


@dataclass(frozen=True)
class EngineCommand:
    """What is started: a program and its arguments, to which the job file's path is added."""

    program: str
    arguments: Tuple[str, ...]

    @classmethod
    def of(cls, python: Path, launcher: Path = LAUNCHER) -> EngineCommand:
        """Start the engine with the environment's ``python``: isolated, unbuffered."""
        return cls(str(python), ("-I", "-u", "-X", "utf8", str(launcher)))


def clean_environment(qgis_prefix: str = "") -> QProcessEnvironment:
    """Return this process's environment without what belongs to QGIS.

    Args:
        qgis_prefix: Folder of the QGIS installation; entries of PATH and of the library paths beneath it are left out.
            A system prefix such as ``/usr`` is no QGIS folder and changes nothing.
    """
    environment = QProcessEnvironment.systemEnvironment()
    prefix = os.path.normcase(os.path.normpath(qgis_prefix)) if qgis_prefix else ""
    shared = {os.path.normcase(p) for p in ("/usr", "/usr/local", "/", ".")}
    for name in list(environment.keys()):  # reason: a QProcessEnvironment cannot be iterated
        if name.upper().startswith(_FOREIGN_PREFIXES):
            environment.remove(name)
        elif name.upper() in _LIBRARY_PATHS and prefix and prefix not in shared:
            entries = environment.value(name).split(os.pathsep)
            kept = [e for e in entries if not _is_beneath(e, prefix)]
            environment.insert(name, os.pathsep.join(kept)) if kept else environment.remove(name)
    return environment


def engine_environment_variables() -> QProcessEnvironment:
    """Return :func:`clean_environment` for the QGIS that is running."""
    root = os.environ.get("OSGEO4W_ROOT") if sys.platform == "win32" else None
    return clean_environment(root or QgsApplication.prefixPath())


def _is_beneath(entry: str, prefix: str) -> bool:
    path = os.path.normcase(os.path.normpath(entry)) if entry else ""
    return path == prefix or path.startswith(prefix + os.sep)


class EngineRun(QObject):
    """One job in one child process.

    After :attr:`ended`, exactly one of :attr:`result` and :attr:`error` is set. Signals are emitted in the thread
    that made the object.

    Attributes:
        result: What the engine reports at the end of a good run.
        error: Why there is no result; :class:`Cancelled` after :meth:`cancel`.
    """

    progressed = pyqtSignal(object)  # Progress
    noted = pyqtSignal(object)  # Note
    logged = pyqtSignal(str)
    ended = pyqtSignal()

    def __init__(self, command: EngineCommand, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self.result: Optional[Result] = None
        self.error: Optional[MisoError] = None
        self.is_over = False
        self._command = command
        self._failure: Optional[Failure] = None
        self._reported: Optional[Result] = None
        self._cancel_deadline: Optional[float] = None
        self._killed = False
        self._job_file = ""
        self._buffers = {"out": b"", "err": b""}
        self._log: Deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._watchdog: Optional[QTimer] = None
        self._process = QProcess(self)
        self._process.setProcessEnvironment(engine_environment_variables())
        self._process.readyReadStandardOutput.connect(self._read_output)
        self._process.readyReadStandardError.connect(self._read_log)
        self._process.finished.connect(self._on_finished)
        self._process.errorOccurred.connect(self._on_error)

    @property
    def log(self) -> List[str]:
        """The last lines of the engine's log."""
        return list(self._log)

    @property
    def process_id(self) -> int:
        """The child's process id; 0 when it is not running."""
        return int(self._process.processId())

    def start(self, job: Job) -> None:
        """Write the job file and start the child. Whether it started is learned from :attr:`ended`."""
        try:
            handle, self._job_file = tempfile.mkstemp(prefix="miso_job_", suffix=".json")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(write_job(job))
        except OSError as error:
            self._finish(
                OutputError(
                    f'Temporary folder "{tempfile.gettempdir()}"',
                    f"the job file cannot be written there ({error.strerror}).",
                    "A few kilobytes are needed.",
                    "Free some disk space, or set TMPDIR to a folder that can be written.",
                )
            )
            return
        self._process.start(self._command.program, [*self._command.arguments, self._job_file])

    def cancel(self) -> None:
        """Ask the child to end by closing its input; kill it when :data:`GRACE_S` have passed."""
        if self.is_over or self._cancel_deadline is not None:
            return
        self._cancel_deadline = time.monotonic() + GRACE_S
        self._process.closeWriteChannel()
        self._watchdog = QTimer(self)
        self._watchdog.timeout.connect(self.enforce_cancel)
        self._watchdog.start(POLL_MS)

    def enforce_cancel(self) -> None:
        """Kill the child if it was asked to end and has not."""
        if self._cancel_deadline is not None and time.monotonic() > self._cancel_deadline and not self.is_over:
            self._killed = True
            self._process.kill()

    def wait(self, milliseconds: int) -> None:
        """Wait for the child to say something or to end. For threads without an event loop."""
        if not self.is_over and not self._process.waitForReadyRead(milliseconds):
            # Returns at once when stdout is closed while the process still runs: never spin.
            self._process.waitForFinished(milliseconds // 10)

    def stop_now(self) -> None:
        """Cancel and wait, at most :data:`GRACE_S` and a kill. For the plugin's unload."""
        self.cancel()
        while not self.is_over:
            self.wait(POLL_MS)
            self.enforce_cancel()

    def _read_output(self) -> None:
        for line in self._lines("out", bytes(self._process.readAllStandardOutput())):
            self._take(line)

    def _read_log(self) -> None:
        for line in self._lines("err", bytes(self._process.readAllStandardError())):
            self._keep_log(line)

    def _lines(self, channel: str, data: bytes) -> Sequence[str]:
        *lines, self._buffers[channel] = (self._buffers[channel] + data).split(b"\n")
        return [line.decode("utf-8", errors="replace").rstrip("\r") for line in lines]

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        try:
            event = read_event(line)
        except SchemaError:
            # Libraries written in C print to stdout too; what is no message of ours is a line of log.
            self._keep_log(line)
            return
        if isinstance(event, Progress):
            self.progressed.emit(event)
        elif isinstance(event, Note):
            self.noted.emit(event)
        elif isinstance(event, Result):
            self._reported = event
        else:
            self._failure = event

    def _keep_log(self, line: str) -> None:
        if line.strip():
            self._log.append(line)
            self.logged.emit(line)

    def _on_error(self, error: QProcess.ProcessError) -> None:
        if error != QProcess.ProcessError.FailedToStart:
            return  # finished follows, and says more
        self._finish(
            RuntimeFailure(
                f'Engine "{self._command.program}"',
                f"it cannot be started ({self._process.errorString()}).",
                "A Python environment with the engine's packages is needed.",
                'Run "Set up engine" again.',
            )
        )

    def _on_finished(self, *_: object) -> None:
        self._read_output()
        self._read_log()
        for channel in ("out", "err"):
            for line in self._lines(channel, b"\n"):
                self._take(line) if channel == "out" else self._keep_log(line)
        if self._reported is not None:
            self._accept(self._reported)
        elif self._cancel_deadline is not None or (self._failure and self._failure.code == Cancelled.code):
            self._finish(Cancelled())
        elif self._failure is not None:
            self._finish(error_of(self._failure))
        else:
            crashed = self._process.exitStatus() == QProcess.ExitStatus.CrashExit
            self._finish(explain_end(crashed, self._process.exitCode(), self.log))

    def _accept(self, result: Result) -> None:
        missing = [path for path in result.outputs.values() if not Path(path).exists()]
        if missing:
            self._finish(
                OutputError(
                    f'Result "{missing[0]}"',
                    "the engine reports it as written, but the file is not there.",
                    "",
                    "Check that no other program removes files from this folder, and run again.",
                )
            )
        else:
            self.result = result
            self._finish(None)

    def _finish(self, error: Optional[MisoError]) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.error = error
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._job_file:
            Path(self._job_file).unlink(missing_ok=True)
        self.ended.emit()


def run_job(command: EngineCommand, job: Job, feedback: QgsProcessingFeedback) -> Result:
    """Run ``job`` to its end in the calling thread, which may be a worker thread.

    Progress, notes and log lines go to ``feedback``, which is asked ten times a second whether to cancel.

    Raises:
        Cancelled: If ``feedback`` was cancelled.
        MisoError: If the engine reports a failure or dies; the text says what to do.
    """
    run = EngineRun(command)
    run.progressed.connect(lambda progress: _show_progress(progress, feedback))
    run.noted.connect(
        lambda note: feedback.pushWarning(note.text) if note.level == "warning" else feedback.pushInfo(note.text)
    )
    run.logged.connect(feedback.pushConsoleInfo)
    run.start(job)
    while not run.is_over:
        run.wait(POLL_MS)
        if feedback.isCanceled():
            run.cancel()
        run.enforce_cancel()
    if run.error is not None:
        raise run.error
    if run.result is None:
        raise RuntimeError("a run that is over has neither a result nor an error")
    return run.result


def _show_progress(progress: Progress, feedback: QgsProcessingFeedback) -> None:
    if progress.total > 0:
        feedback.setProgress(100.0 * progress.done / progress.total)
    if progress.text:
        feedback.setProgressText(progress.text)


def error_of(failure: Failure) -> MisoError:
    """Turn the engine's report into the error it was made from."""
    kind = _ERRORS.get(failure.code, RuntimeFailure)
    if not failure.problems:
        return kind("The engine", f"failed without saying why (code {failure.code}).")
    return kind.of(failure.problems)


_SIGNALS = {
    4: (
        "it used an instruction that this processor does not have (signal 4).",
        "Set up the engine again on this machine.",
    ),
    6: ("a library in it gave up (signal 6, abort).", "Run again; if it repeats, report it with the log."),
    7: (
        "it could not read memory or a mapped file (signal 7).",
        "Check that the disk is not full and the drive is connected.",
    ),
    9: (
        "the system killed it (signal 9), most likely because memory ran out.",
        "Close other programs, choose a smaller area or a coarser resolution, and run again.",
    ),
    11: (
        "it crashed (signal 11, invalid memory access), most likely in a driver or a library.",
        "Choose the CPU as provider and run again; if it repeats, set up the engine again.",
    ),
    15: ("something else ended it (signal 15).", "Run again."),
}
_WINDOWS_CODES = {
    0xC0000005: (
        "it crashed (access violation), most likely in a driver or in an old Microsoft Visual C++ runtime.",
        "Choose the CPU as provider, or install the current Visual C++ redistributable, and run again.",
    ),
    0xC0000135: (
        "a library that it needs was not found.",
        "Install the current Microsoft Visual C++ redistributable, then set up the engine again.",
    ),
    0xC0000017: ("memory ran out.", "Close other programs or choose a smaller area, and run again."),
    0xC000001D: (
        "it used an instruction that this processor does not have.",
        "Set up the engine again on this machine.",
    ),
}


def explain_end(crashed: bool, code: int, log: Sequence[str]) -> RuntimeFailure:
    """Say why a child ended that reported neither a result nor a failure.

    Args:
        crashed: Whether the system ended it, not the program itself.
        code: Signal number (Unix, crashed), status of the operating system (Windows), or exit code.
        log: Its last lines on stderr.
    """
    windows = _WINDOWS_CODES.get(code & 0xFFFFFFFF)
    if windows is not None:
        found, remedy = windows
    elif crashed:
        found, remedy = _SIGNALS.get(code, (f"the system ended it (signal or status {code}).", "Run again."))
    else:
        found = f"it ended early with exit code {code} and without a result."
        remedy = 'Run "Set up engine" again; if it repeats, report it with the log.'
        last = _last_error(log)
        if last:
            found = f"{found} Its last message: {last}"
    return RuntimeFailure("The engine", found, "Nothing was written that looks finished.", remedy)


def _last_error(log: Sequence[str]) -> str:
    """Return the last line that names an error, for people who will ask for help; tracebacks stay in the log."""
    lines = [line.strip() for line in log if "Error" in line or "error" in line]
    return lines[-1][:300] if lines else ""
