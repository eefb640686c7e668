"""Each engine lock resolves, from wheels alone and by digest, for every Python and system that it says it is for."""

import re
import subprocess
import sys

import pytest

from development.environments import TRAINING_REQUIREMENTS, python_of
from development.locks import PLATFORMS, PYTHONS, REQUIREMENTS, lock_path, resolver_environment

KINDS = [(python, gpu) for python in PYTHONS for gpu in (False, True)]
TEXTS = {kind: lock_path(*kind).read_text(encoding="utf-8") for kind in KINDS}
NO_NETWORK = re.compile(r"dns error|error sending request|Connection refused|timed out", re.IGNORECASE)


def platforms_of(text):
    said = re.search(r"^# Platforms: (.*)\.$", text, flags=re.MULTILINE)[1].split(", ")
    return [platform for platform in PLATFORMS if platform.name in said]


def pins(text):
    """(name, version) of every entry."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE)
    return {(name.lower().replace("_", "-"), version) for name, version in found}


def imported():
    """What the engine imports, by its requirements file."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


CASES = [(python, gpu, platform) for (python, gpu), text in TEXTS.items() for platform in platforms_of(text)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "gpu", "platform"),
    CASES,
    ids=[f"{python}-{platform.name.replace(' ', '-')}{'-gpu' if gpu else ''}" for python, gpu, platform in CASES],
)
def test_a_lock_resolves(python, gpu, platform, tmp_path):
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--require-hashes", "--only-binary", ":all:"]
    command += ["--python-version", python, "--python-platform", platform.target, "--target", tmp_path / "nowhere"]
    command += ["--requirements", lock_path(python, gpu)]
    done = subprocess.run(command, env=resolver_environment(), capture_output=True, text=True, timeout=300)
    if done.returncode != 0 and NO_NETWORK.search(done.stderr):
        pytest.skip("the locks were not resolved: no network")
    assert done.returncode == 0, done.stderr
    would = re.search(r"Would install (\d+) packages", done.stderr)
    assert would, done.stderr
    assert int(would[1]) >= 12
    assert f"onnxruntime{'-gpu' if gpu else ''}==" in done.stderr


@pytest.mark.parametrize(("python", "gpu"), TEXTS)
def test_every_pin_has_a_digest_and_no_index_is_named(python, gpu):
    text = TEXTS[python, gpu]
    joined = re.sub(r"\\\n", " ", text)
    entries = [line for line in joined.splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9._-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("python", PYTHONS)
def test_a_platform_gets_each_package_once(python, gpu):
    """By the markers alone: one version of each name on each platform."""
    text = TEXTS[python, gpu]
    entries = re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\\n]*))?", text, flags=re.MULTILINE)
    assert entries
    for platform in platforms_of(text):
        values = {"sys_platform": platform.system, "platform_machine": platform.machine}
        names = [name for name, _, marker in entries if not marker or eval(marker, {}, values)]
        assert len(names) == len(set(names)) >= 12, platform.name


@pytest.mark.parametrize(("python", "gpu"), TEXTS)
def test_a_lock_holds_what_the_engine_imports_and_one_runtime(python, gpu):
    names = {name for name, _ in pins(TEXTS[python, gpu])}
    wanted = imported()
    if gpu:
        wanted = (wanted - {"onnxruntime"}) | {"onnxruntime-gpu"}
    assert wanted <= names
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == 1


def test_training_uses_the_versions_of_the_lock():
    """What training saw is what the engine computes only if both run the same libraries."""
    training = pins(TRAINING_REQUIREMENTS.read_text(encoding="utf-8"))
    lock = pins(TEXTS["3.11", False])
    assert {name for name, _ in training & lock} >= imported()


def test_the_environment_holds_the_lock_and_nothing_else():
    freeze = [python_of("engine"), "-I", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    done = subprocess.run(freeze, capture_output=True, text=True, timeout=120, check=True)
    found = pins(done.stdout)
    minor = subprocess.run(
        [python_of("engine"), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # pip and setuptools come with the environment.
    extra = {pair for pair in found if pair[0] not in ("pip", "setuptools")} - pins(TEXTS[minor, False])
    assert extra == set()


def test_the_document_names_every_pin_of_the_runtime():
    document = (lock_path("3.11").parents[3] / "docs" / "engine-environment.md").read_text(encoding="utf-8")
    for (python, gpu), text in TEXTS.items():
        row = next(line for line in document.splitlines() if line.startswith(f"| {python} "))
        cells = {cell.strip() for cell in row.split("|")}
        # Intel Macs may have older pins beside these; the text below the table names them.
        for package in ("onnxruntime-gpu" if gpu else "onnxruntime", "numpy", "rasterio"):
            assert {version for name, version in pins(text) if name == package} & cells, f"{python} {package}"


@pytest.mark.parametrize("python", PYTHONS)
def test_with_a_gpu_only_the_runtime_differs(python):
    """Whoever turns the GPU on keeps every other version. NVIDIA's own libraries and what only Macs need aside."""
    extra = pins(TEXTS[python, True]) - pins(TEXTS[python, False])
    assert {name for name, _ in extra if not name.startswith("nvidia-")} == {"onnxruntime-gpu"}
