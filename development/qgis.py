"""The QGIS installations of this machine, and how their programs are run away from the user's own profile."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from . import debian
from .project import BUILD, CACHE, ENVIRONMENTS, PACKAGE, BuildError, environment, run, say

# Older ones lack what the plugin's metadata asks for.
OLDEST = (3, 22)
WANTED_LINES = ("3.22", "3.40")


@dataclass(frozen=True)
class Qgis:
    """One installation.

    Attributes:
        version: "3.22.16".
        process: ``qgis_process``.
        python: The Python that QGIS was built for.
        variables: What the environment must hold for this installation to be used.
    """

    version: str
    process: Path
    python: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Release line, "3.22"."""
        return ".".join(self.version.split(".")[:2])

    def environment(self, scratch: Path, plugins: Path = BUILD) -> Dict[str, str]:
        """Environment for its programs: a profile of its own under ``scratch``, no screen, and ``plugins``."""
        home, runtime = scratch / "home", scratch / "runtime"
        home.mkdir(parents=True, exist_ok=True)
        runtime.mkdir(exist_ok=True)
        runtime.chmod(0o700)  # Qt refuses a runtime folder that others may read
        changes: Dict[str, str] = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "QGIS_CUSTOM_CONFIG_PATH": str(scratch / "config"),
            "QGIS_PLUGINPATH": str(plugins),
            "QT_QPA_PLATFORM": "offscreen",
            "MISO_QGIS_ENGINE_ENV": str(ENVIRONMENTS / "engine"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": self.search_path(),
        }
        own = _pip_settings()
        if own is not None:
            changes["PIP_CONFIG_FILE"] = str(own)  # pip looks for it under HOME, which is another one now
        removed = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "PYTHONHOME", "PYTHONPATH"))
        return environment(**{**removed, **changes, **self.variables})

    def search_path(self) -> str:
        """PATH with this installation first.

        The Python inside QGIS derives its library folders from the first ``python3`` on PATH; where that is another
        one (pyenv, conda), QGIS does not find its own bindings.
        """
        places = [str(self.process.parent), str(self.python.parent), os.environ.get("PATH", os.defpath)]
        return os.pathsep.join(dict.fromkeys(places))

    def enable_plugin(self, scratch: Path, plugins: Path = BUILD) -> Dict[str, str]:
        """Make a profile under ``scratch`` in which the plugin is on; returns the environment to run in."""
        variables = self.environment(scratch, plugins)
        ini = scratch / "config" / "profiles" / "default" / "QGIS" / "QGIS3.ini"
        ini.parent.mkdir(parents=True, exist_ok=True)
        ini.write_text(f"[PythonPlugins]\n{PACKAGE}=true\n", encoding="utf-8")
        return variables


def find_installations(beside: bool) -> List[Qgis]:
    """The installed QGIS, and on Debian 12, if ``beside``, the newer one that is unpacked beside it.

    Raises:
        BuildError: If no QGIS is installed, or it is too old.
    """
    found = [installed_qgis()]
    if beside and found[0].line == "3.22" and debian.codename() == debian.BACKPORTS_CODENAME:
        folder = debian.unpack_backports_qgis(found[0].version)
        variables = debian.backports_variables(folder)
        process = folder / "usr/bin/qgis_process.bin"
        found.append(Qgis(_version(process, variables), process, found[0].python, variables))
    return found


def prepared_installations() -> List[Qgis]:
    """Those that are ready to run, without preparing any."""
    return find_installations(beside=(debian.BACKPORTS_ROOT / "complete").is_file())


def not_exercised(installations: List[Qgis]) -> List[str]:
    """Release lines that the plugin should be tried on and that this machine does not have."""
    return [line for line in WANTED_LINES if line not in {qgis.line for qgis in installations}]


def installed_qgis() -> Qgis:
    """The QGIS that the machine's packages installed.

    Raises:
        BuildError: If there is none, or it is too old.
    """
    # Debian's wrapper without ".bin" hands the program an option that it refuses.
    process = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    if process is None:
        raise BuildError("qgis_process was not found. Install QGIS 3.22 or newer with its Python bindings.", 2)
    version = _version(Path(process), {})
    if _numbers(version) < OLDEST:
        raise BuildError(f"QGIS {version} is installed; 3.22 or newer is needed.", 2)
    return Qgis(version, Path(process), qgis_python())


def qgis_python() -> Path:
    """The Python that has QGIS's bindings: on Debian always the system's, whatever ``python3`` on PATH is.

    Raises:
        BuildError: If none has them.
    """
    for candidate in ("/usr/bin/python3", shutil.which("python3")):
        if candidate and os.path.exists(candidate):
            tried = run([candidate, "-c", "import qgis.core"], env=_offscreen({}), check=False, quiet=True)
            if tried.returncode == 0:
                return Path(candidate)
    raise BuildError("No Python with QGIS's bindings was found. Install the package python3-qgis.", 2)


def _offscreen(variables: Mapping[str, str]) -> Dict[str, str]:
    return environment(QT_QPA_PLATFORM="offscreen", QGIS_CUSTOM_CONFIG_PATH=str(CACHE / "version-profile"), **variables)


def _version(process: Path, variables: Mapping[str, str]) -> str:
    # With --version alone the program still wants a profile folder, so it gets one of its own.
    done = run([process, "--version"], env=_offscreen(variables), check=False, quiet=True)
    match = re.search(r"QGIS (\d+\.\d+\.\d+)", done.stdout)
    if done.returncode != 0 or match is None:
        say(done.stdout[-2000:])
        raise BuildError(f"{process} does not run.")
    return match[1]


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _pip_settings() -> Path | None:
    if os.environ.get("PIP_CONFIG_FILE"):
        return None
    home = Path.home()
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    for path in (configuration / "pip" / "pip.conf", home / ".pip" / "pip.conf"):
        if path.is_file():
            return path
    return None
