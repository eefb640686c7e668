"""The arrows of the architecture: what the engine, and the part of it that QGIS imports, may load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "miso_qgis" / "engine"
# Imported inside QGIS, where nothing is installed.
SHARED = ("errors", "schema", "messages", "manifest", "progress", "classes")
MODULES = sorted(path.stem for path in ENGINE.glob("*.py") if path.stem not in ("__init__", "__main__"))


def loaded_after(code, *options):
    """Names of the top-level modules that are loaded after ``code``, in a fresh interpreter."""
    program = f"import sys; sys.path.append({str(ROOT)!r}); {code}; import json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_engine_loads_neither_qgis_nor_torch_nor_the_training_packages():
    pytest.importorskip("onnxruntime")
    names = loaded_after("; ".join(f"import miso_qgis.engine.{module}" for module in MODULES))
    assert not names & {"qgis", "PyQt5", "PyQt6", "osgeo", "torch", "sklearn", "onnx", "training", "matplotlib"}


def test_what_qgis_imports_of_the_engine_is_standard_library_only():
    # -S leaves out every installed package, -I every path from outside.
    names = loaded_after("; ".join(f"import miso_qgis.engine.{module}" for module in SHARED), "-I", "-S")
    assert not names - set(sys.stdlib_module_names) - {"miso_qgis", "__main__"}


def test_importing_the_engine_package_loads_nothing():
    names = loaded_after("import miso_qgis.engine", "-I", "-S")
    assert "argparse" not in names
    assert "numpy" not in names


def test_a_missing_package_is_a_message_not_a_traceback(tmp_path):
    job = tmp_path / "job.json"
    job.write_text('{"kind": "probe"}')
    command = [sys.executable, "-I", "-S", str(ENGINE / "launch.py"), str(job)]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    event = json.loads(done.stdout)
    assert event["kind"] == "failure"
    assert "cannot be loaded" in event["problems"][0]["found"]
    assert "Set the engine up again" in event["problems"][0]["remedy"]
