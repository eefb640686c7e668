"""The child process from the plugin's side: what it says arrives, and however it dies, QGIS lives and says why."""

import os
import sys
import time
from pathlib import Path

import pytest
from qgis.core import QgsProcessingFeedback
from qgis.PyQt.QtCore import QCoreApplication, QThread

from miso_qgis.application import engine_client
from miso_qgis.application.engine_client import EngineCommand, EngineRun, clean_environment, explain_end, run_job
from miso_qgis.engine.errors import Cancelled, InputError, OutputError, RuntimeFailure
from miso_qgis.engine.messages import ProbeJob

FAKE = Path(__file__).parent / "fake_engine.py"
PYTHON = f"{sys.prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"


def fake(mode):
    return EngineCommand(PYTHON, ("-I", "-u", str(FAKE), mode))


class Heard(QgsProcessingFeedback):
    """Feedback that remembers, and cancels itself after ``cancel_after_s``."""

    def __init__(self, cancel_after_s=None):
        super().__init__(False)
        self.infos, self.warnings, self.log, self.texts = [], [], [], []
        self.deadline = None if cancel_after_s is None else time.monotonic() + cancel_after_s

    def pushInfo(self, info):
        self.infos.append(info)

    def pushWarning(self, warning):
        self.warnings.append(warning)

    def pushConsoleInfo(self, info):
        self.log.append(info)

    def setProgressText(self, text):
        self.texts.append(text)

    def isCanceled(self):
        return self.deadline is not None and time.monotonic() > self.deadline


def is_alive(process_id):
    return Path(f"/proc/{process_id}").exists() and "Z" not in Path(f"/proc/{process_id}/stat").read_text().split()[2]


def test_a_good_run_passes_on_everything_the_child_says(qgis_app, monkeypatch):
    for name in ("PROJ_LIB", "PROJ_DATA", "PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, "/wrong")
    feedback = Heard()
    result = run_job(fake("good"), ProbeJob(), feedback)
    assert result.summary == {"job": "probe", "isolated": 1}
    assert feedback.progress() == 100
    assert feedback.warnings == ["A warning"]
    assert feedback.texts == ["Working", "Done"]
    assert "a C library says hello" in feedback.log  # no message of ours, and no reason to fail
    assert "log line with an umlaut: ü" in feedback.log
    assert feedback.infos == ["{}"], "a variable of QGIS's Python or PROJ has reached the child"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("segfault", ["crashed", "signal 11", "CPU as provider"]),
        ("killed", ["killed it", "signal 9", "memory ran out", "smaller area"]),
        ("aborts", ["signal 6"]),
        ("midline", ["exit code 0", "without a result"]),
        ("silent", ["exit code 0", "without a result"]),
        ("traceback", ["exit code 1", "ModuleNotFoundError", "Set up engine"]),
        ("garbage", ["exit code 1", "without a result"]),
    ],
)
def test_a_dead_child_is_an_error_that_names_the_cause(qgis_app, mode, words):
    with pytest.raises(RuntimeFailure) as raised:
        run_job(fake(mode), ProbeJob(), Heard())
    text = str(raised.value)
    assert all(word in text for word in words), text
    assert "Traceback" not in text


def test_a_failure_arrives_with_all_its_problems(qgis_app):
    with pytest.raises(InputError) as raised:
        run_job(fake("failure"), ProbeJob(), Heard())
    assert [problem.what for problem in raised.value.problems] == ['Layer "dem"', 'Layer "nlcd"']
    assert "Assign one." in str(raised.value)


def test_a_result_that_is_not_there_is_an_error(qgis_app):
    with pytest.raises(OutputError, match=r"/does/not/exist.json.*not there"):
        run_job(fake("lies"), ProbeJob(), Heard())


def test_a_program_that_does_not_start_is_an_error(qgis_app):
    with pytest.raises(RuntimeFailure, match=r"/no/python.*cannot be started.*Set up engine"):
        run_job(EngineCommand("/no/python", ()), ProbeJob(), Heard())


@pytest.mark.parametrize(("mode", "limit_s"), [("slow", 1.0), ("deaf", 2.0)])
def test_cancel_ends_the_child_within_two_seconds(qgis_app, mode, limit_s):
    feedback = Heard(cancel_after_s=0.5)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        run_job(fake(mode), ProbeJob(), feedback)
    assert time.monotonic() - started - 0.5 < limit_s


def test_signals_are_delivered_by_the_event_loop_and_the_job_file_is_removed(qgis_app):
    run = EngineRun(fake("slow"))
    seen = []
    run.progressed.connect(seen.append)
    run.start(ProbeJob())
    wait_until(lambda: len(seen) >= 3)
    process_id, job_file = run.process_id, Path(run._job_file)
    assert job_file.exists()
    assert is_alive(process_id)
    run.cancel()
    wait_until(lambda: run.is_over)
    assert isinstance(run.error, Cancelled)
    assert run.result is None
    assert not job_file.exists()
    assert not is_alive(process_id)


def test_a_deaf_child_is_killed_by_the_event_loop(qgis_app):
    run = EngineRun(fake("deaf"))
    run.start(ProbeJob())
    wait_until(lambda: run.process_id > 0)
    process_id, started = run.process_id, time.monotonic()
    run.cancel()
    wait_until(lambda: run.is_over)
    assert time.monotonic() - started < 2.0
    assert not is_alive(process_id)


def test_a_worker_thread_without_an_event_loop_can_run_a_job(qgis_app):
    class Worker(QThread):
        outcome = None

        def run(self):
            feedback = Heard()
            self.outcome = (run_job(fake("good"), ProbeJob(), feedback).summary["job"], feedback.progress())

    worker = Worker()
    worker.start()
    assert worker.wait(20_000)
    assert worker.outcome == ("probe", 100)


def test_a_full_temporary_folder_is_an_error(qgis_app, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_client.tempfile, "mkstemp", full)
    with pytest.raises(OutputError, match=r"Temporary folder.*No space left.*TMPDIR"):
        run_job(fake("good"), ProbeJob(), Heard())


def test_windows_codes_are_translated():
    assert "access violation" in str(explain_end(True, -1073741819, []))  # 0xC0000005 as QProcess gives it
    assert "Visual C++" in str(explain_end(False, 0xC0000135, []))


def test_the_childs_environment_is_free_of_qgis(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(["/opt/qgis/lib", "/opt/cuda/lib"]))
    monkeypatch.setenv("GDAL_DATA", "/opt/qgis/share/gdal")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    environment = clean_environment("/opt/qgis")
    assert environment.value("LD_LIBRARY_PATH") == "/opt/cuda/lib"
    assert not environment.contains("GDAL_DATA")
    assert environment.value("HTTPS_PROXY") == "http://proxy:3128"
    # A system prefix is not a QGIS folder: /usr/bin stays.
    assert clean_environment("/usr").value("PATH") == os.environ["PATH"]


def wait_until(condition, limit_s=15):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        QCoreApplication.processEvents()
        time.sleep(0.02)
