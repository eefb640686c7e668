"""Packages of Debian and Ubuntu: install what is missing, and put QGIS 3.40 beside the 3.22 of Debian 12.

QGIS 3.40 is not installed: its packages from bookworm-backports are unpacked into ``.cache/qgis-3.40`` and use the
common libraries (GDAL, PROJ, Qt) of the installed 3.22, so that one machine runs both and keeps its own.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

from .project import CACHE, BuildError, digest, environment, run, say, step

# python3-venv makes environments; fonts-open-sans keeps QGIS from asking to download its font.
RUN_PACKAGES = ("qgis", "python3-qgis", "python3-venv", "fonts-open-sans")
# xauth is what xvfb-run needs and does not pull in by itself; saga is the independent tool for the terrain.
TEST_PACKAGES = ("xvfb", "xauth", "saga", "git")
PATIENCE = (
    *("-o", "Acquire::Retries=5", "-o", "Acquire::http::Timeout=60", "-o", "Acquire::https::Timeout=60"),
    *("-o", "DPkg::Lock::Timeout=600"),
)
BACKPORTS_CODENAME = "bookworm"
BACKPORTS_ROOT = CACHE / "qgis-3.40"
BACKPORTS_PACKAGES = ("qgis", "python3-qgis")
DIST_PACKAGES = "usr/lib/python3/dist-packages"
UNPACK_RECIPE = "1"


@dataclass(frozen=True)
class Source:
    """One archive of the machine's package sources."""

    uri: str
    suites: Sequence[str]
    components: Sequence[str]
    signed_by: str = ""


def ensure_packages(packages: Sequence[str]) -> None:
    """Install the missing ones of ``packages``.

    Raises:
        BuildError: With the line to run, if this user may not install packages; or if it fails.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        say("   no apt-get here: QGIS is taken as it is installed")
        return
    missing = missing_packages(packages)
    if not missing:
        return
    command = ["apt-get", *PATIENCE, *_haste(), "install", "-y", "--no-install-recommends", *missing]
    prefix: List[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or run(["sudo", "-n", "true"], check=False, quiet=True).returncode != 0:
            line = f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
            raise BuildError(
                f"Packages are missing that only root can install. Run this, then start again:\n  {line}", 2
            )
        prefix = ["sudo", "-n"]
    with step(f"Debian packages: {' '.join(missing)}"):
        noninteractive = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
        # An archive of somebody else's that does not answer must not stop this: only the installation decides.
        run([*noninteractive, "apt-get", *PATIENCE, "update"], check=False, quiet=True)
        run([*noninteractive, *command], quiet=True)


def _haste() -> Sequence[str]:
    """On a machine that is thrown away, do not wait for the disk after each file: 118 in place of 358 s."""
    return ("-o", "DPkg::Options::=--force-unsafe-io") if os.environ.get("CI") else ()


def missing_packages(packages: Sequence[str]) -> List[str]:
    """Those of ``packages`` that are not installed."""
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages]
    lines = run(query, check=False, quiet=True).stdout.splitlines()
    installed = {line.split()[0] for line in lines if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def codename() -> str:
    """The release's name ("bookworm"), empty where it is not known."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)', text, flags=re.MULTILINE)
    return match[1] if match else ""


# --- QGIS 3.40 beside 3.22 ---------------------------------------------------------------------------------------


def unpack_backports_qgis(installed_version: str) -> Path:
    """Unpack QGIS from bookworm-backports into the cache, once. Returns the folder that stands for ``/``.

    Args:
        installed_version: Of the QGIS whose libraries it will use; another one is reason to unpack again.

    Raises:
        BuildError: If the packages cannot be had.
    """
    wanted = digest(extra=f"{UNPACK_RECIPE} {installed_version}")
    stamp = BACKPORTS_ROOT / "complete"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return BACKPORTS_ROOT
    with step("QGIS 3.40 from bookworm-backports, unpacked beside the installed one"):
        shutil.rmtree(BACKPORTS_ROOT, ignore_errors=True)
        BACKPORTS_ROOT.mkdir(parents=True)
        scratch = CACHE / "backports"
        shutil.rmtree(scratch, ignore_errors=True)
        for package in _download(scratch):
            run(["dpkg-deb", "--extract", package, BACKPORTS_ROOT], quiet=True)
        _merge_pyqt()
        shutil.rmtree(scratch, ignore_errors=True)
        stamp.write_text(wanted, encoding="utf-8")
    return BACKPORTS_ROOT


def backports_variables(folder: Path) -> Dict[str, str]:
    """Variables that make programs and Pythons use the unpacked QGIS."""
    libraries = [folder / "usr/lib", *sorted(folder.glob("usr/lib/*-linux-gnu*"))]
    libraries += sorted(folder.glob("usr/lib/*-linux-gnu*/pulseaudio"))
    pythons = [folder / "usr/share/qgis/python", folder / "usr/share/qgis/python/plugins", folder / DIST_PACKAGES]
    return {
        "QGIS_PREFIX_PATH": str(folder / "usr"),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(map(str, pythons)),
    }


def _download(scratch: Path) -> List[Path]:
    sources = list(machine_sources())
    mirror = debian_mirror(sources)
    lists, archives, parts = scratch / "lists", scratch / "cache" / "archives", scratch / "sources.d"
    for folder in (lists / "partial", archives / "partial", parts):
        folder.mkdir(parents=True)
    backports = Source(mirror.uri, [f"{BACKPORTS_CODENAME}-backports"], ["main"], mirror.signed_by)
    known = [source for source in sources if set(source.suites) & set(_own_suites())]
    text = "\n".join(_stanza(source) for source in [*known, backports])
    (parts / "debian.sources").write_text(text, encoding="utf-8")
    options = [*PATIENCE, "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={scratch / 'cache'}"]
    options += ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={parts}"]
    # Nothing of the machine is changed, so its locks are not needed; the cache may lie where only this user reads.
    options += ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
    release = f"{BACKPORTS_CODENAME}-backports"
    names = [f"{name}/{release}" for name in BACKPORTS_PACKAGES]
    plain = environment(LC_ALL="C.UTF-8")
    run(["apt-get", *options, "update"], env=plain, quiet=True)
    install = ["install", "-y", "--download-only", "--no-install-recommends", "-t", release, *names]
    run(["apt-get", *options, *install], env=plain, quiet=True)
    found = sorted(archives.glob("*.deb"))
    if not found:
        raise BuildError("apt-get downloaded no package of QGIS from bookworm-backports.")
    return found


def _merge_pyqt() -> None:
    """Link the machine's PyQt5 modules beside those that came unpacked: a package lies in one folder only."""
    machine = Path("/") / DIST_PACKAGES / "PyQt5"
    unpacked = BACKPORTS_ROOT / DIST_PACKAGES / "PyQt5"
    if not unpacked.is_dir():
        return
    for path in machine.rglob("*"):
        copy = unpacked / path.relative_to(machine)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif not copy.exists():
            copy.symlink_to(path)


def machine_sources() -> Iterator[Source]:
    """Every archive in the machine's source lists, in both of their forms."""
    folder = Path("/etc/apt/sources.list.d")
    lists = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list"))]
    for path in lists:
        if path.is_file():
            yield from parse_list(path.read_text(encoding="utf-8", errors="replace"))
    for path in sorted(folder.glob("*.sources")):
        yield from parse_sources(path.read_text(encoding="utf-8", errors="replace"))


def parse_list(text: str) -> Iterator[Source]:
    """The one-line form: ``deb [signed-by=/key.gpg] http://mirror/debian bookworm main``."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            options = dict(option.partition("=")[::2] for option in (match[1] or "").split())
            yield Source(match[2], [match[3]], match[4].split(), options.get("signed-by", ""))


def parse_sources(text: str) -> Iterator[Source]:
    """The form of stanzas; a key may be given in full, over many lines."""
    for stanza in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields = {
            name.lower(): value
            for name, value in re.findall(r"^([A-Za-z-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", stanza, flags=re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").strip().lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            signed_by = fields.get("signed-by", "").rstrip()
            yield Source(uri, fields.get("suites", "").split(), fields.get("components", "").split(), signed_by)


def debian_mirror(sources: Sequence[Source]) -> Source:
    """The archive that carries Debian itself: it has the release's updates, or at least is named after Debian.

    Raises:
        BuildError: If no archive looks like it.
    """
    suites: Dict[str, set[str]] = {}
    for source in sources:
        suites.setdefault(source.uri, set()).update(source.suites)
    candidates = [source for source in sources if BACKPORTS_CODENAME in source.suites and "main" in source.components]

    def likeness(source: Source) -> int:
        has_updates = f"{BACKPORTS_CODENAME}-updates" in suites[source.uri]
        return 2 * has_updates + source.uri.rstrip("/").endswith("/debian")

    best: Optional[Source] = max(candidates, key=likeness, default=None)
    if best is None:
        raise BuildError(f"The machine's package sources name no Debian mirror for {BACKPORTS_CODENAME}.")
    return best


def _own_suites() -> List[str]:
    return [BACKPORTS_CODENAME + suffix for suffix in ("", "-updates", "-security", "/updates", "-backports")]


def _stanza(source: Source) -> str:
    lines = ["Types: deb", f"URIs: {source.uri}", f"Suites: {' '.join(source.suites)}"]
    lines += [f"Components: {' '.join(source.components)}"] if source.components else []
    lines += [f"Signed-By: {source.signed_by}"] if source.signed_by else []
    return "\n".join(lines) + "\n"
