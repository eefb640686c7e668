"""Making the engine's environment: the plan first, then the packages by digest, and a clear word when it fails."""

import base64
import hashlib
import json
import os
import stat
import sys
import time
import zipfile
from pathlib import Path

import pytest
from qgis.core import QgsProcessingFeedback, QgsSettings

from miso_qgis.application import engine_environment as environment
from miso_qgis.engine.errors import Cancelled, InputError, OutputError, RuntimeFailure

PLATFORM = f"py{sys.version_info[0]}.{sys.version_info[1]}"
GOOD_LAUNCHER = """
import json, sys, miso_probe_package
sys.stdout.write(json.dumps({"kind": "result", "outputs": {}, "summary": {}}) + chr(10))
"""


class Feedback(QgsProcessingFeedback):
    def __init__(self, cancel_when=None):
        super().__init__(False)
        self.lines, self.cancel_when = [], cancel_when

    def pushInfo(self, info):
        self.lines.append(info)

    def pushConsoleInfo(self, info):
        self.lines.append(info)

    def isCanceled(self):
        return self.cancel_when is not None and self.cancel_when()


@pytest.fixture
def wheels(tmp_path) -> Path:
    """A folder with one tiny wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "miso_probe_package-1.0.dist-info"
    files = {
        "miso_probe_package.py": "VALUE = 1\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: miso-probe-package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def digest(text):
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()

    record = [f"{name},sha256={digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / "miso_probe_package-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return folder


@pytest.fixture
def setup(tmp_path, wheels, monkeypatch):
    """Locks of the test's own, and an environment folder that does not exist yet."""
    locks = tmp_path / "locks"
    locks.mkdir()
    digest = hashlib.sha256(next(wheels.glob("*.whl")).read_bytes()).hexdigest()
    write_lock(locks, digest)
    folder = tmp_path / "data" / "engine"
    monkeypatch.setattr(environment, "LOCKS_FOLDER", locks)
    monkeypatch.setattr(environment, "CPU_DISK_BYTES", 1_000_000)
    monkeypatch.setattr(environment, "CPU_DOWNLOAD_BYTES", 1_000_000)
    monkeypatch.setenv(environment.ENVIRONMENT_VARIABLE, str(folder))
    launcher = tmp_path / "launch.py"
    launcher.write_text(GOOD_LAUNCHER)
    return launcher


def write_lock(locks, digest):
    end = f" \\\n    --hash=sha256:{digest}\n"
    text = f"# comment\nmiso-probe-package==1.0{end}not-here==2 ; (sys_platform == 'no'){end}"
    (locks / f"engine-{PLATFORM}.txt").write_text(text)


def test_an_environment_is_made_offline_and_the_second_call_does_nothing(qgis_app, setup, wheels):
    feedback = Feedback()
    plan = environment.plan_setup(wheels, False, feedback)
    assert not plan.is_done
    assert plan.packages == (("miso-probe-package", "1.0"),), "a package for another system is not counted"
    text = plan.describe()
    for part in (str(plan.folder), str(plan.base.path), "miso-probe-package 1.0", str(wheels), "without network", "MB"):
        assert part in text
    assert not plan.folder.exists(), "planning must not do anything"
    assert environment.set_up(plan, feedback, setup) == plan.folder
    assert environment.engine_status().ready
    assert feedback.progress() == 100
    started = time.monotonic()
    again = environment.plan_setup(wheels, False, feedback)
    assert again.is_done
    assert "nothing needs to be done" in again.describe()
    environment.set_up(again, feedback, setup)
    assert time.monotonic() - started < 2


def test_a_changed_lock_makes_the_environment_outdated_and_the_next_setup_replaces_it(
    qgis_app, setup, wheels, tmp_path
):
    environment.set_up(environment.plan_setup(wheels, False, Feedback()), Feedback(), setup)
    lock = tmp_path / "locks" / f"engine-{PLATFORM}.txt"
    lock.write_text(lock.read_text() + "# newer\n")
    status = environment.engine_status()
    assert not status.ready
    assert "another version" in status.text
    leftover = status.folder / "leftover"
    leftover.touch()
    plan = environment.plan_setup(wheels, False, Feedback())
    assert "removed first" in plan.describe()
    environment.set_up(plan, Feedback(), setup)
    assert environment.engine_status().ready
    assert not leftover.exists()


def test_an_environment_that_does_not_run_is_not_complete(qgis_app, setup, wheels):
    setup.write_text("raise SystemExit('libsomething.so is missing')")
    with pytest.raises(RuntimeFailure, match="exit code 1"):
        environment.set_up(environment.plan_setup(wheels, False, Feedback()), Feedback(), setup)
    status = environment.engine_status()
    assert not status.ready
    assert "interrupted" in status.text
    setup.write_text(GOOD_LAUNCHER)
    environment.set_up(environment.plan_setup(wheels, False, Feedback()), Feedback(), setup)
    assert environment.engine_status().ready


def test_cancel_stops_the_setup_and_leaves_nothing_that_looks_complete(qgis_app, setup, wheels):
    feedback = Feedback()
    began = []
    feedback.cancel_when = lambda: bool(feedback.progress() >= 5 and (began or began.append(time.monotonic()) or True))
    with pytest.raises(Cancelled):
        environment.set_up(environment.plan_setup(wheels, False, Feedback()), feedback, setup)
    assert time.monotonic() - began[0] < 3
    assert not environment.engine_status().ready


def test_a_missing_wheel_is_named_before_anything_is_done(qgis_app, setup, wheels):
    next(wheels.glob("*.whl")).unlink()
    with pytest.raises(InputError, match=r"no wheel of miso-probe-package 1\.0 is in it.*Copy the missing wheels"):
        environment.plan_setup(wheels, False, Feedback())
    with pytest.raises(InputError, match="does not exist"):
        environment.plan_setup(wheels / "none", False, Feedback())


def test_an_altered_wheel_is_refused(qgis_app, setup, wheels, tmp_path):
    write_lock(tmp_path / "locks", "0" * 64)
    with pytest.raises(InputError, match=r"miso.probe.package.*hash mismatch.*not installed"):
        environment.set_up(environment.plan_setup(wheels, False, Feedback()), Feedback(), setup)
    assert not environment.engine_status().ready


def test_an_index_that_cannot_be_reached_is_named(qgis_app, setup, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(RuntimeFailure, match=r"cannot be reached.*folder of wheels"):
        environment.set_up(environment.plan_setup(None, False, Feedback()), Feedback(), setup)


def test_a_full_disk_is_reported_before_anything_is_done(qgis_app, setup, wheels, monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 500_000})())
    with pytest.raises(InputError, match=r"0 MB are free.*About 1 MB are needed.*another disk"):
        environment.plan_setup(wheels, False, Feedback())


def test_a_folder_of_somebody_else_is_never_emptied(qgis_app, setup, wheels):
    folder = environment.environment_folder()
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"did not make, so they will not be removed"):
        environment.plan_setup(wheels, False, Feedback())
    assert (folder / "thesis.txt").exists()


def test_several_problems_are_reported_together(qgis_app, setup, wheels, monkeypatch):
    next(wheels.glob("*.whl")).unlink()
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0})())
    with pytest.raises(InputError) as raised:
        environment.plan_setup(wheels, False, Feedback())
    assert len(raised.value.problems) == 2


def test_without_a_usable_python_every_attempt_is_named(qgis_app, setup, tmp_path, monkeypatch):
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho 'No module named venv' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(environment, "python_candidates", lambda: [broken, Path("/bin/ls"), tmp_path / "absent"])
    with pytest.raises(InputError) as raised:
        environment.plan_setup(None, False, Feedback())
    text = str(raised.value)
    for part in ("No module named venv", "/bin/ls", "absent: it does not start", "apt install python3-venv"):
        assert part in text


def test_a_python_without_a_lock_is_passed_over(qgis_app, setup):
    with pytest.raises(InputError, match="no GPU packages are listed for Python"):
        environment.plan_setup(None, True, Feedback())


def test_a_python_is_found_although_sys_executable_is_qgis(qgis_app, setup, monkeypatch):
    monkeypatch.setattr(environment.sys, "executable", "/usr/bin/qgis.bin")
    assert Path("/usr/bin/qgis.bin") not in environment.python_candidates()
    found = environment.find_python(False, Feedback())
    assert found.version == sys.version_info[:2]


def test_the_folder_depends_on_the_plugins_version_and_on_python(monkeypatch, qgis_app):
    monkeypatch.delenv(environment.ENVIRONMENT_VARIABLE, raising=False)
    folder = environment.environment_folder()
    assert folder.name == f"engine-{environment.plugin_version()}-{PLATFORM}"
    assert environment.plugin_version() != "0"
    assert "miso_qgis" in folder.parts
    assert Path(environment.__file__).parents[1] not in folder.parents


def test_without_an_environment_the_status_says_what_to_do(monkeypatch, tmp_path, qgis_app):
    monkeypatch.setenv(environment.ENVIRONMENT_VARIABLE, str(tmp_path / "nothing"))
    status = environment.engine_status()
    assert not status.ready
    assert "miso:setupengine" in status.text
    with pytest.raises(InputError, match="not set up"):
        environment.engine_command()


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        ("OSError: [Errno 28] No space left on device", OutputError, "full"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", RuntimeFailure, "certificate"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407", RuntimeFailure, "proxy"),
        (
            "WARNING: Retrying: NewConnectionError\nERROR: No matching distribution found for numpy==2.4.6",
            RuntimeFailure,
            "cannot be reached",
        ),
        ("ERROR: No matching distribution found for numpy==2.4.6", InputError, "numpy==2.4.6"),
        ("ERROR: Could not install packages: [Errno 13] Permission denied: 'x'", OutputError, "cannot be written"),
        ("something else\nlast words", RuntimeFailure, "last words"),
    ],
)
def test_what_pip_prints_is_explained(log, kind, words):
    error = environment.explain_pip(log.splitlines(), None)
    assert type(error) is kind
    assert words in str(error)


def test_the_proxy_of_qgis_is_used(qgis_app):
    settings = QgsSettings()
    values = {"proxyEnabled": True, "proxyHost": "proxy.example", "proxyPort": "3128", "proxyType": "HttpProxy"}
    assert environment.qgis_proxy() == ""
    try:
        for name, value in values.items():
            settings.setValue(f"proxy/{name}", value)
        assert environment.qgis_proxy() == "http://proxy.example:3128"
    finally:
        settings.remove("proxy")


def test_every_shipped_lock_can_be_read():
    locks = list(environment.LOCKS_FOLDER.glob("engine-*.txt"))
    assert locks, "no lock file is shipped"
    for lock in locks:
        names = {name for name, _ in environment.locked_packages(lock.read_text(encoding="utf-8"))}
        assert {"numpy", "rasterio", "scipy"} <= names, lock.name
        assert names & {"onnxruntime", "onnxruntime-gpu"}, lock.name
        assert ("-gpu-" in lock.name) == ("onnxruntime-gpu" in names), lock.name


def test_the_dry_run_says_everything_and_does_nothing(qgis_process, tmp_path):
    folder = tmp_path / "engine"
    done = qgis_process("--json", "run", "miso:setupengine", "--", "DRY_RUN=true", MISO_QGIS_ENGINE_ENV=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout[done.stdout.index("{") :])["results"]["ENVIRONMENT"] == str(folder)
    assert "onnxruntime" in done.stdout
    assert not folder.exists()
