"""Make the engine's locks: one hashed requirements file for each Python, on the CPU and on an NVIDIA GPU.

Each platform is resolved by itself with wheels only, so that a pin is written for a platform only where a wheel of it
exists there; then the platforms are joined into one file with environment markers. The main platforms share their
pins: where they differ, all take the lowest. Intel Macs, for which several projects no longer publish, may differ.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from .project import CACHE, PACKAGE, ROOT, BuildError, environment, run, say, step

REQUIREMENTS = ROOT / "development" / "engine-requirements.txt"
LOCKS = ROOT / PACKAGE / "resources" / "requirements"
TOOLS = ROOT / "tests" / "requirements.txt"
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
GPU_PACKAGE = "onnxruntime-gpu[cuda,cudnn]"


@dataclass(frozen=True)
class Platform:
    """A kind of machine.

    Attributes:
        name: Words for people.
        target: The resolver's name for it.
        system: Value of the marker ``sys_platform``.
        machine: Value of the marker ``platform_machine``.
        main: Whether it shares its pins with the others.
        gpu: Whether onnxruntime-gpu is published for it.
    """

    name: str
    target: str
    system: str
    machine: str
    main: bool = True
    gpu: bool = False

    @property
    def marker(self) -> str:
        """True on this platform."""
        return f"(sys_platform == '{self.system}' and platform_machine == '{self.machine}')"

    @property
    def other(self) -> str:
        """True on every other platform."""
        return f"(sys_platform != '{self.system}' or platform_machine != '{self.machine}')"


PLATFORMS = (
    Platform("Linux x86_64", "x86_64-manylinux_2_28", "linux", "x86_64", gpu=True),
    Platform("Linux aarch64", "aarch64-manylinux_2_28", "linux", "aarch64"),
    Platform("Windows x86_64", "x86_64-pc-windows-msvc", "win32", "AMD64", gpu=True),
    Platform("macOS 14 arm64", "aarch64-apple-darwin", "darwin", "arm64"),
    Platform("macOS 14 x86_64", "x86_64-apple-darwin", "darwin", "x86_64", main=False),
)


@dataclass
class Pins:
    """What one platform resolved to: package -> (version, hashes)."""

    platform: Platform
    packages: Dict[str, Tuple[str, Tuple[str, ...]]] = field(default_factory=dict)


def lock_path(python: str, gpu: bool = False) -> Path:
    """The lock for a Python ("3.11")."""
    return LOCKS / f"engine-{'gpu-' if gpu else ''}py{python}.txt"


def make_locks() -> None:
    """Write every lock anew from what PyPI offers today."""
    uv = install_uv()
    LOCKS.mkdir(parents=True, exist_ok=True)
    for gpu in (False, True):
        for python in PYTHONS:
            with step(f"lock for Python {python}{', NVIDIA GPU' if gpu else ''}"):
                _make_lock(uv, python, gpu)


def install_uv() -> Path:
    """Put the resolver into an environment of its own and return its path."""
    folder = CACHE / "uv"
    program = folder / "bin" / "uv"
    if not program.exists():
        pin = re.search(r"^uv==\S+", TOOLS.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if pin is None:
            raise BuildError(f"{TOOLS} pins no uv, which makes the locks.")
        run([sys.executable, "-m", "venv", folder])
        run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", pin[0]])
    return program


def resolver_environment() -> Dict[str, str]:
    """Resolve for macOS 14, the oldest that current wheels of onnxruntime and rasterio are made for."""
    return environment(MACOSX_DEPLOYMENT_TARGET="14.0")


def _make_lock(uv: Path, python: str, gpu: bool) -> None:
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    platforms = [platform for platform in PLATFORMS if platform.gpu or not gpu]
    if gpu:
        requirements = re.sub(r"^onnxruntime$", GPU_PACKAGE, requirements, flags=re.MULTILINE)
    constraints = _shared_pins(python) if gpu else {}
    found = _resolve_all(uv, requirements, python, platforms, constraints)
    shared = [pins for pins in found if pins.platform.main]
    for name in sorted({name for pins in shared for name in pins.packages}):
        versions = {pins.packages[name][0] for pins in shared if name in pins.packages}
        # Builds of CUDA's libraries differ between Linux and Windows by their last digits only.
        if len(versions) > 1 and not name.startswith("nvidia-"):
            constraints[name] = min(versions, key=_version_key)
    if constraints:
        found = _resolve_all(uv, requirements, python, platforms, constraints)
    if not found:
        raise BuildError(f"No platform has wheels of all packages for Python {python}.")
    missing = [platform.name for platform in platforms if platform not in [pins.platform for pins in found]]
    lock_path(python, gpu).write_text(_join(found, missing, python, gpu), encoding="utf-8")


def _shared_pins(python: str) -> Dict[str, str]:
    """The main platforms' versions in the lock for the CPU: with a GPU, only the runtime differs."""
    text = lock_path(python).read_text(encoding="utf-8")
    entries = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\\n]*))?", text, flags=re.MULTILINE)
    apart = [platform.marker for platform in PLATFORMS if not platform.main]
    pins = {name: version for name, version, marker in entries if marker.strip() not in apart}
    pins.pop("onnxruntime")
    return pins


def _resolve_all(
    uv: Path, requirements: str, python: str, platforms: Sequence[Platform], constraints: Dict[str, str]
) -> List[Pins]:
    resolved = []
    for platform in platforms:
        pins = _resolve(uv, requirements, python, platform, constraints if platform.main else {})
        if pins is None:
            say(f"   {platform.name}: some package has no wheel for Python {python}")
        else:
            resolved.append(pins)
    return resolved


def _resolve(
    uv: Path, requirements: str, python: str, platform: Platform, constraints: Dict[str, str]
) -> Optional[Pins]:
    with tempfile.TemporaryDirectory() as folder:
        source, limit = Path(folder, "requirements.in"), Path(folder, "constraints.txt")
        source.write_text(requirements, encoding="utf-8")
        limit.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()), encoding="utf-8")
        command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--only-binary", ":all:", "--prerelease", "disallow", "--python-version", python]
        command += ["--python-platform", platform.target, "--constraint", limit, source]
        done = run(command, env=resolver_environment(), check=False, quiet=True)
    if done.returncode != 0:
        if "unsatisfiable" not in done.stdout:
            raise BuildError(f"The resolver failed: {done.stdout.strip()}")
        return None
    return Pins(platform, parse_lock(done.stdout))


def parse_lock(text: str) -> Dict[str, Tuple[str, Tuple[str, ...]]]:
    """Package -> (version, hashes) of a requirements file with hashes and without markers."""
    packages = {}
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", entry)
        if match:
            packages[match[1]] = (match[2], tuple(re.findall(r"--hash=(\S+)", entry)))
    return packages


def _join(found: Sequence[Pins], missing: Sequence[str], python: str, gpu: bool) -> str:
    lines = [
        f"# Packages of the engine for Python {python}{' with an NVIDIA GPU' if gpu else ''}.",
        "# Made by `python3 build.py lock`; change development/engine-requirements.txt instead.",
        f"# Platforms: {', '.join(pins.platform.name for pins in found)}.",
    ]
    if missing:
        lines.append(f"# No wheels of every package for: {', '.join(missing)}.")
    platforms = [pins.platform for pins in found]
    for name in sorted({name for pins in found for name in pins.packages}):
        versions: Dict[str, List[Platform]] = {}
        hashes: Dict[str, Tuple[str, ...]] = {}
        for pins in found:
            if name in pins.packages:
                version, values = pins.packages[name]
                versions.setdefault(version, []).append(pins.platform)
                hashes[version] = tuple(sorted({*hashes.get(version, ()), *values}))
        for version, where in versions.items():
            marker = _marker(where, platforms)
            lines.append(f"{name}=={version}{' ; ' + marker if marker else ''} \\")
            lines.append(" \\\n".join(f"    --hash={value}" for value in hashes[version]))
    return "\n".join(lines) + "\n"


def _marker(where: Sequence[Platform], platforms: Sequence[Platform]) -> str:
    """Condition for ``where``, without nesting: the plugin reads these lines too, to say what it will install."""
    absent = [platform for platform in platforms if platform not in where]
    if not absent:
        return ""
    if len(absent) == 1 and len(where) > 1:
        return absent[0].other
    return " or ".join(platform.marker for platform in where)


def _version_key(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
