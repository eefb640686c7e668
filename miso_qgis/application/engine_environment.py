"""The engine's Python environment: where it is, whether it is ready, and how it is made.

It lies outside QGIS and outside the plugin, so that nothing it holds can break QGIS and an update of the plugin does
not lose it. Environment means a virtual environment made from a base Python with the packages of one lock file, all
pinned by hash. A stamp file says which lock; it says ``complete`` only after a verification run, so an interrupted
setup is never taken for a finished one (virtual environments cannot be moved, so there is no rename at the end).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from qgis.core import QgsProcessingFeedback, QgsSettings
from qgis.PyQt.QtCore import QProcess, QStandardPaths

from ..engine.errors import Cancelled, InputError, MisoError, OutputError, Problem, RuntimeFailure
from ..engine.messages import ProbeJob
from .engine_client import GRACE_S, POLL_MS, EngineCommand, engine_environment_variables, run_job
from .folders import LAUNCHER, LOCKS_FOLDER, plugin_version

ENVIRONMENT_VARIABLE = "MISO_QGIS_ENGINE_ENV"
STAMP = "miso-engine.json"
# Where packages come from: values of the parameter SOURCE of miso:setupengine, in the order of its choices.
PYPI, FOLDER = 0, 1
OLDEST_PYTHON = (3, 9)
NEWEST_PYTHON = (3, 13)

# Measured on Linux with Python 3.11 (wheels, and the environment they become); the other platforms differ by a third.
CPU_DOWNLOAD_BYTES, CPU_DISK_BYTES = 215_000_000, 760_000_000
GPU_DOWNLOAD_BYTES, GPU_DISK_BYTES = 1_700_000_000, 3_600_000_000

HOW_TO_SET_UP = (
    'Run the Processing algorithm "Set up engine" (miso:setupengine), or press Set Up Engine… in the MISO panel.'
)


@dataclass(frozen=True)
class Python:
    """An interpreter that can make environments."""

    path: Path
    version: Tuple[int, int]


@dataclass(frozen=True)
class EngineStatus:
    """Whether the engine can run.

    Attributes:
        ready: True if jobs can be started.
        folder: Where the environment is, or would be.
        text: One sentence for the user; if not ready, with what to do.
    """

    ready: bool
    folder: Path
    text: str

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return interpreter_of(self.folder)


@dataclass(frozen=True)
class SetupPlan:
    """What a setup will do, before it does anything.

    Attributes:
        folder: The environment's folder.
        base: The Python that it is made from.
        lock: Requirements file with hashes.
        packages: (name, version) in the lock's order.
        wheels: Folder of wheels; None downloads from the package index.
        gpu: Whether onnxruntime-gpu takes the place of onnxruntime.
        download_bytes: About how much is downloaded, or the size of the wheels in the folder.
        disk_bytes: About how much disk the environment takes.
        replaces: Whether an environment of ours in the same folder is removed first.
        is_done: The environment is already what this plan would make.
    """

    folder: Path
    base: Python
    lock: Path
    packages: Tuple[Tuple[str, str], ...]
    wheels: Optional[Path]
    gpu: bool
    download_bytes: int
    disk_bytes: int
    replaces: bool
    is_done: bool

    def describe(self) -> str:
        """Return the plan as lines of plain text, to be read before anything happens."""
        source = (
            f"the folder {self.wheels}, without network"
            if self.wheels
            else "the Python Package Index (or your pip's index)"
        )
        amount = "Wheels in the folder" if self.wheels else "Download"
        lines = [
            f"Folder: {self.folder}",
            f"Python: {self.base.path} ({self.base.version[0]}.{self.base.version[1]})",
            f"Packages from: {source}",
            f"Each is checked against the digest in {self.lock.name}; nothing is installed into QGIS.",
            f"{amount}: about {self.download_bytes / 1e6:.0f} MB; on disk: about {self.disk_bytes / 1e6:.0f} MB.",
            f"Packages ({len(self.packages)}): " + ", ".join(f"{name} {version}" for name, version in self.packages),
        ]
        if self.is_done:
            lines.append("The environment is complete; nothing needs to be done.")
        elif self.replaces:
            lines.append("The environment that is there now will be removed first.")
        return "\n".join(lines)


def environment_folder() -> Path:
    """Return where the environment is: ``MISO_QGIS_ENGINE_ENV``, else the user's data folder per version and Python."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).absolute()
    data = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.GenericDataLocation)
    python = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    return Path(data) / "miso_qgis" / f"engine-{plugin_version()}-{python}"


def interpreter_of(folder: Path) -> Path:
    """Return the path of the interpreter of the virtual environment in ``folder``."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def lock_file(version: Tuple[int, int], gpu: bool) -> Path:
    """Return the lock file for a Python version; it may not exist."""
    return LOCKS_FOLDER / f"engine-{'gpu-' if gpu else ''}py{version[0]}.{version[1]}.txt"


def engine_status() -> EngineStatus:
    """Say whether the engine can run. Cheap: looks at files, starts nothing."""
    folder = environment_folder()
    if not interpreter_of(folder).exists():
        return EngineStatus(False, folder, f"The engine is not set up yet. {HOW_TO_SET_UP}")
    stamp = _read_stamp(folder)
    if stamp is None:
        if os.environ.get(ENVIRONMENT_VARIABLE):
            return EngineStatus(True, folder, f"Engine named by {ENVIRONMENT_VARIABLE}, not made by this plugin.")
        return EngineStatus(False, folder, f"The folder {folder} holds no environment of this plugin. {HOW_TO_SET_UP}")
    if stamp.get("state") != "complete":
        return EngineStatus(False, folder, f"The last setup of the engine was interrupted. {HOW_TO_SET_UP}")
    version = tuple(stamp.get("python", (0, 0)))[:2]
    if stamp.get("lock") != _digest(lock_file(version, bool(stamp.get("gpu")))):
        return EngineStatus(
            False, folder, f"The engine's packages belong to another version of the plugin. {HOW_TO_SET_UP}"
        )
    kind = "GPU" if stamp.get("gpu") else "CPU"
    return EngineStatus(True, folder, f"Engine ready ({kind}, Python {version[0]}.{version[1]}).")


def engine_command() -> EngineCommand:
    """Return the command that starts the engine.

    Raises:
        InputError: If the environment is not ready.
    """
    status = engine_status()
    if not status.ready:
        raise InputError("The engine", status.text)
    return EngineCommand.of(status.python)


def plan_setup(wheels: Optional[Path], gpu: bool, feedback: QgsProcessingFeedback) -> SetupPlan:
    """Find out what a setup would do, and everything that stands in its way.

    Raises:
        InputError: If there is no usable Python, no lock for it, a wheel missing in the folder, too little disk, or a
            foreign folder in the place of the environment. All problems are reported together.
    """
    folder = environment_folder()
    base = find_python(gpu, feedback)
    lock = lock_file(base.version, gpu)
    packages = tuple(locked_packages(lock.read_text(encoding="utf-8")))
    stamp = _read_stamp(folder)
    is_done = bool(stamp) and stamp_matches(stamp, lock, base, gpu) and interpreter_of(folder).exists()
    download, disk = (GPU_DOWNLOAD_BYTES, GPU_DISK_BYTES) if gpu else (CPU_DOWNLOAD_BYTES, CPU_DISK_BYTES)
    problems: List[Problem] = []
    if wheels is not None:
        problems += _missing_wheels(wheels, packages)
        download = sum(path.stat().st_size for path in wheels.glob("*.whl")) if wheels.is_dir() else 0
    if not is_done:
        problems += _folder_problems(folder, stamp, disk + download)  # pip unpacks beside what it has downloaded
    if problems:
        raise InputError.of(problems)
    return SetupPlan(
        folder, base, lock, packages, wheels, gpu, download, disk, stamp is not None and not is_done, is_done
    )


def stamp_matches(stamp: Dict[str, object], lock: Path, base: Python, gpu: bool) -> bool:
    """Return whether a finished environment is what ``lock`` would make."""
    wanted = {"state": "complete", "lock": _digest(lock), "gpu": gpu, "python": list(base.version)}
    return all(stamp.get(key) == value for key, value in wanted.items())


def set_up(plan: SetupPlan, feedback: QgsProcessingFeedback, launcher: Path = LAUNCHER) -> Path:
    """Make the environment that ``plan`` describes and prove that it runs. Returns its folder.

    Safe to call from a worker thread. What an interrupted call leaves is never taken for an environment, and the next
    call replaces it. ``launcher`` is the script that the finished environment must be able to run.

    Raises:
        Cancelled: If ``feedback`` was cancelled.
        MisoError: If a step fails; the text says why and what to do.
    """
    if plan.is_done:
        feedback.pushInfo("The engine is already set up.")
        return plan.folder
    started = time.monotonic()
    _prepare_folder(plan)
    feedback.setProgressText("Making the environment")
    steps = _Steps(feedback)
    steps.run(plan.base.path, ["-I", "-m", "venv", str(plan.folder)], explain_venv)
    feedback.setProgress(5)
    python = interpreter_of(plan.folder)
    seen: List[str] = []

    def count(line: str) -> None:
        if line.startswith(("Collecting ", "Processing ")):  # pip's words for the network and for a folder
            seen.append(line)
            feedback.setProgress(min(80.0, 5 + 75.0 * len(seen) / max(len(plan.packages), 1)))
            feedback.setProgressText(f"Package {len(seen)} of {len(plan.packages)}: {Path(line.split()[1]).name}")
        elif line.startswith("Installing collected"):
            feedback.setProgress(82)
            feedback.setProgressText("Installing the packages")

    steps.run(python, _pip_arguments(plan), lambda log: explain_pip(log, plan.wheels), count)
    feedback.setProgress(92)
    feedback.setProgressText("Running the engine once")
    run_job(EngineCommand.of(python, launcher), ProbeJob(), _Quiet(feedback))
    _write_stamp(plan, "complete")
    feedback.setProgress(100)
    feedback.pushInfo(f"The engine is ready after {time.monotonic() - started:.0f} s: {plan.folder}")
    return plan.folder


def _pip_arguments(plan: SetupPlan) -> List[str]:
    source = ["--no-index", "--find-links", str(plan.wheels)] if plan.wheels else ["--retries", "2", "--timeout", "20"]
    return [
        *("-I", "-X", "utf8", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-color"),
        *("--progress-bar", "off", "--only-binary", ":all:", "--require-hashes", *source, "-r", str(plan.lock)),
    ]


def _prepare_folder(plan: SetupPlan) -> None:
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        _write_stamp(plan, "incomplete")
        # The stamp stays throughout: without it, a folder half removed would look like somebody else's.
        for entry in [entry for entry in plan.folder.iterdir() if entry.name != STAMP]:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except OSError as error:
        raise OutputError(
            f'Folder "{plan.folder}"',
            f"it cannot be written or replaced ({error.strerror or error}).",
            "A folder that you may write to, and that no running engine uses, is needed.",
            f"Close other QGIS windows, or name another folder in the variable {ENVIRONMENT_VARIABLE}.",
        ) from error


def _write_stamp(plan: SetupPlan, state: str) -> None:
    stamp = {
        "state": state,
        "lock": _digest(plan.lock),
        "gpu": plan.gpu,
        "python": list(plan.base.version),
        "plugin": plugin_version(),
        "packages": dict(plan.packages),
    }
    (plan.folder / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def _read_stamp(folder: Path) -> Optional[Dict[str, object]]:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _digest(lock: Path) -> str:
    try:
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    except OSError:
        return "no lock"


# --- what may stand in the way -----------------------------------------------------------------------------------


def locked_packages(text: str) -> List[Tuple[str, str]]:
    """Return (name, version) of every requirement of a lock file that holds on this system."""
    pattern = r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)[ \t]*(?:;([^\\\n]*))?"
    found = re.findall(pattern, text, flags=re.MULTILINE)
    return [(name, version) for name, version, marker in found if marker_holds(marker)]


def marker_holds(marker: str) -> bool:
    """Return whether a requirement's condition holds on this system.

    Understands what the lock files use: comparisons of ``sys_platform`` and ``platform_machine`` joined by ``and`` and
    ``or``, without nesting. Anything else counts as true; pip, which understands all of it, has the last word.
    """
    known = {"sys_platform": sys.platform, "platform_machine": platform.machine()}

    def term_holds(term: str) -> bool:
        match = re.fullmatch(r"\s*(\w+)\s*(==|!=)\s*['\"]([^'\"]*)['\"]\s*", term.replace("(", " ").replace(")", " "))
        if match is None or match.group(1) not in known:
            return True
        name, operator, value = match.groups()
        return (known[name] == value) == (operator == "==")

    return not marker.strip() or any(
        all(term_holds(term) for term in alternative.split(" and ")) for alternative in marker.split(" or ")
    )


def _missing_wheels(wheels: Path, packages: Sequence[Tuple[str, str]]) -> List[Problem]:
    if not wheels.is_dir():
        return [
            Problem(
                f'Folder of wheels "{wheels}"', "it does not exist.", "", "Choose the folder that holds the .whl files."
            )
        ]
    there = {
        (_normal(parts[0]), parts[1])
        for parts in (path.name.split("-") for path in wheels.glob("*.whl"))
        if len(parts) > 2
    }
    missing = [f"{name} {version}" for name, version in packages if (_normal(name), version) not in there]
    if not missing:
        return []
    return [
        Problem(
            f'Folder of wheels "{wheels}"',
            f"no wheel of {', '.join(missing)} is in it.",
            "Every package of the lock file is needed, in exactly that version.",
            "Copy the missing wheels into the folder, or choose PyPI as the source.",
        )
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _folder_problems(folder: Path, stamp: Optional[Dict[str, object]], disk_bytes: int) -> List[Problem]:
    problems = []
    if stamp is None and folder.is_dir() and any(folder.iterdir()):
        problems.append(
            Problem(
                f'Folder "{folder}"',
                "it holds files that this plugin did not make, so they will not be removed.",
                "An empty or missing folder is needed.",
                f"Empty it yourself, or name another folder in the variable {ENVIRONMENT_VARIABLE}.",
            )
        )
    existing = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), None)
    if existing is None or not os.access(existing, os.W_OK):
        problems.append(
            Problem(
                f'Folder "{folder}"',
                "it cannot be made there, because you may not write to it.",
                "",
                f"Name another folder in the variable {ENVIRONMENT_VARIABLE}.",
            )
        )
    else:
        free = shutil.disk_usage(existing).free
        if free < disk_bytes:
            problems.append(
                Problem(
                    f'Disk of "{existing}"',
                    f"{free / 1e6:.0f} MB are free.",
                    f"About {disk_bytes / 1e6:.0f} MB are needed.",
                    f"Free some space, or name a folder on another disk in the variable {ENVIRONMENT_VARIABLE}.",
                )
            )
    return problems


# --- finding a Python --------------------------------------------------------------------------------------------


def python_candidates() -> List[Path]:
    """Return where a Python may be, best first: QGIS's own, then others that a lock exists for.

    ``sys.executable`` comes last of QGIS's own and only if it is called python: inside QGIS it is often QGIS itself,
    and starting that would open a second QGIS.
    """
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    prefixes = [Path(p) for p in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix))]
    candidates: List[Path] = []
    for prefix in prefixes:
        if sys.platform == "win32":
            candidates += [prefix / "python.exe", prefix / "python3.exe"]
        else:
            candidates += [prefix / "bin" / f"python{own}", prefix / "bin" / "python3"]
            candidates += [
                prefix / "MacOS" / "bin" / f"python{own}",
                prefix / "Resources" / "python" / "bin" / "python3",
            ]
    if Path(sys.executable or "").name.lower().startswith("python"):
        candidates.append(Path(sys.executable))
    others = [own] + [f"3.{minor}" for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)]
    for name in [f"python{version}" for version in others] + ["python3", "python"]:
        found = shutil.which(name)
        if found:
            candidates.append(Path(found))
    return list(dict.fromkeys(candidate for candidate in candidates if candidate.is_file()))


def find_python(gpu: bool, feedback: QgsProcessingFeedback) -> Python:
    """Return the first Python that can make an environment and that a lock file exists for.

    Raises:
        InputError: If there is none; the text lists what was tried and why each was refused.
    """
    refused: List[str] = []
    for path in python_candidates():
        python, reason = examine_python(path)
        if python is None:
            refused.append(f"{path}: {reason}")
        elif not lock_file(python.version, gpu).is_file():
            refused.append(
                f"{path}: no {'GPU ' if gpu else ''}packages are listed for Python {_dotted(python.version)}"
            )
        else:
            return python
        feedback.pushDebugInfo(f"Not used: {refused[-1]}")
    raise InputError(
        "Python for the engine",
        "no usable one was found. Tried: " + ("; ".join(refused) or "none") + ".",
        f"A 64-bit Python {_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)} with the modules venv and "
        f"ensurepip is needed.",
        'Install one: on Debian or Ubuntu "apt install python3-venv", elsewhere from python.org or your software '
        "centre.",
    )


def examine_python(path: Path) -> Tuple[Optional[Python], str]:
    """Start ``path`` and return it as a :class:`Python`, or None and the reason why it cannot be used."""
    code = "import sys, venv, ensurepip; print('python', sys.version_info[0], sys.version_info[1], sys.maxsize > 2**32)"
    process = QProcess()
    process.setProcessEnvironment(engine_environment_variables())
    process.start(str(path), ["-I", "-c", code])
    if not process.waitForStarted(10_000) or not process.waitForFinished(20_000):
        process.kill()
        process.waitForFinished(2_000)
        return None, "it does not start"
    if process.exitStatus() != QProcess.ExitStatus.NormalExit or process.exitCode() != 0:
        log = bytes(process.readAllStandardError()).decode("utf-8", errors="replace").strip().splitlines()
        return None, log[-1] if log else f"it ended with code {process.exitCode()}"
    words = bytes(process.readAllStandardOutput()).decode("utf-8", errors="replace").split()
    if len(words) != 4 or words[0] != "python":
        return None, "it is no Python"
    if words[3] != "True":
        return None, "it is a 32-bit Python"
    return Python(path, (int(words[1]), int(words[2]))), ""


def _dotted(version: Tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# --- running the steps -------------------------------------------------------------------------------------------


class _Quiet(QgsProcessingFeedback):
    """Feedback of a step: passes cancelling and the log on, keeps the progress of the whole setup."""

    def __init__(self, outer: QgsProcessingFeedback) -> None:
        super().__init__(False)
        self._outer = outer

    def isCanceled(self) -> bool:
        return bool(self._outer.isCanceled())

    def pushConsoleInfo(self, info: str) -> None:
        self._outer.pushConsoleInfo(info)

    def pushInfo(self, info: str) -> None:
        self._outer.pushInfo(info)


class _Steps:
    """Runs the programs of a setup one after the other, polling for Cancel."""

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        self._feedback = feedback

    def run(
        self,
        program: Path,
        arguments: Sequence[str],
        explain: Callable[[List[str]], MisoError],
        line_read: Optional[Callable[[str], None]] = None,
    ) -> None:
        """Run one program; ``explain`` turns its output into the error to raise if it fails."""
        process = QProcess()
        process.setProcessChannelMode(QProcess.ProcessChannelMode.MergedChannels)
        environment = engine_environment_variables()
        # Settings that would send packages elsewhere than into the environment.
        for name in (
            "PIP_USER",
            "PIP_TARGET",
            "PIP_PREFIX",
            "PIP_ROOT",
            "PIP_REQUIREMENT",
            "PIP_NO_BINARY",
            "PIP_FIND_LINKS",
        ):
            environment.remove(name)
        proxy = qgis_proxy()
        if proxy:
            environment.insert("HTTPS_PROXY", proxy)
            environment.insert("HTTP_PROXY", proxy)
        process.setProcessEnvironment(environment)
        process.start(str(program), list(arguments))
        log: List[str] = []
        if not process.waitForStarted(30_000):
            raise explain([process.errorString()])
        while process.state() != QProcess.ProcessState.NotRunning:
            if not process.waitForReadyRead(POLL_MS):
                process.waitForFinished(POLL_MS // 10)
            self._take_lines(process, log, line_read)
            if self._feedback.isCanceled():
                process.terminate()
                if not process.waitForFinished(int(GRACE_S * 1000)):
                    process.kill()
                    process.waitForFinished(1_000)
                raise Cancelled()
        self._take_lines(process, log, line_read)
        if process.exitStatus() != QProcess.ExitStatus.NormalExit or process.exitCode() != 0:
            raise explain(log)

    def _take_lines(self, process: QProcess, log: List[str], line_read: Optional[Callable[[str], None]]) -> None:
        is_over = process.state() == QProcess.ProcessState.NotRunning
        while process.canReadLine() or (is_over and process.bytesAvailable()):
            line = bytes(process.readLine()).decode("utf-8", errors="replace").rstrip()
            if not line:
                continue
            log.append(line)
            self._feedback.pushConsoleInfo(line)
            if line_read is not None:
                line_read(line.strip())


def qgis_proxy() -> str:
    """Return the HTTP proxy of QGIS's network settings as a URL, or an empty text."""
    settings = QgsSettings()
    if not settings.value("proxy/proxyEnabled", False, type=bool):
        return ""
    host = settings.value("proxy/proxyHost", "", type=str)
    port = settings.value("proxy/proxyPort", "", type=str)
    if not host or settings.value("proxy/proxyType", "", type=str) not in ("HttpProxy", "DefaultProxy"):
        return ""
    return f"http://{host}:{port}" if port else f"http://{host}"


def explain_venv(log: Sequence[str]) -> MisoError:
    """Say why the virtual environment was not made."""
    text = "\n".join(log)
    if "No space left" in text or "Errno 28" in text:
        return _disk_full()
    if "ensurepip" in text:
        return InputError(
            "Python for the engine",
            "its venv module is incomplete (ensurepip fails).",
            "",
            'Install it: on Debian or Ubuntu "apt install python3-venv".',
        )
    return RuntimeFailure("Making the environment", f"failed: {_tail(log)}", "", "See the log for details.")


def explain_pip(log: Sequence[str], wheels: Optional[Path]) -> MisoError:
    """Say why pip failed, from what it printed.

    The order matters: pip ends most failures with "No matching distribution", also those of the network.
    """
    text = "\n".join(log)
    if "No space left" in text or "Errno 28" in text:
        return _disk_full()
    if "DO NOT MATCH THE HASHES" in text:
        names = re.findall(
            r"^\s*([A-Za-z0-9._-]+==[^\s;]+)[^\n]*--hash|from file://\S*/([^/\s]+\.whl)", text, flags=re.MULTILINE
        )
        which = ", ".join(sorted({name or file for name, file in names})) or "a package"
        return InputError(
            f"Package {which}",
            "its content is not the one that the lock file names (hash mismatch). It was not installed.",
            "The unaltered file is needed.",
            "Download it again, or choose another source. If it repeats, tell whoever runs your package index.",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "SSLError" in text:
        return RuntimeFailure(
            "The package index",
            "its certificate is not trusted on this machine (often a proxy that inspects traffic).",
            "",
            "Ask your network's administrators for pip's settings, or install from a folder of wheels.",
        )
    if "ProxyError" in text or ("407" in text and "roxy" in text):
        return RuntimeFailure(
            "The proxy",
            "it refused the connection.",
            "",
            "Check Settings > Options > Network, or install from a folder of wheels.",
        )
    offline = (
        "NewConnectionError",
        "Temporary failure in name resolution",
        "ConnectTimeoutError",
        "Name or service not known",
    )
    if wheels is None and any(
        sign in text for sign in (*offline, "getaddrinfo failed", "ReadTimeoutError", "MaxRetryError")
    ):
        return RuntimeFailure(
            "The package index",
            "it cannot be reached.",
            "A connection to the Python Package Index is needed.",
            "Check the network and Settings > Options > Network, or install from a folder of wheels.",
        )
    missing = re.findall(r"No matching distribution found for (\S+)", text)
    if missing:
        place = f'the folder "{wheels}"' if wheels else "the package index"
        return InputError(
            f"Package {missing[0]}",
            f"{place} has no wheel of it for this Python and system.",
            "",
            "Add the wheel for this system, or choose another source.",
        )
    if "Permission denied" in text or "Access is denied" in text:
        return OutputError(
            "The environment's folder", "a file in it cannot be written.", "", "Close other QGIS windows and try again."
        )
    return RuntimeFailure("Installing the packages", f"failed: {_tail(log)}", "", "See the log for details.")


def _disk_full() -> MisoError:
    return OutputError(
        "The disk",
        "it is full; the environment is incomplete and will not be used.",
        "",
        f"Free some space, or name a folder on another disk in the variable {ENVIRONMENT_VARIABLE}, and set up again.",
    )


def _tail(log: Sequence[str]) -> str:
    return " / ".join(list(log)[-2:])[:300] or "no output."
