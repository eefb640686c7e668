"""The command line of training: light imports, exit statuses, messages without tracebacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training import cli

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "training", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_sample_runs_without_torch_and_scikit_learn():
    code = (
        "import sys; import training.cli, training.sample, training.simulation, training.watershed, training.cpcrw;"
        "print(sorted({'torch', 'sklearn', 'onnx', 'qgis'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_simulate_writes_what_it_says(tmp_path):
    found = _run("simulate", "--out", tmp_path / "valley", "--seed", "3")
    assert found.returncode == 0, found.stderr
    assert "invented" in found.stdout
    assert {path.name for path in (tmp_path / "valley").iterdir()} == {"dem.tif", "nlcd.tif"}


def test_sample_says_which_data_it_took(tmp_path):
    found = _run("sample", "--out", tmp_path / "sample")
    assert found.returncode == 0, found.stderr
    description = json.loads((tmp_path / "sample" / "sample.json").read_text(encoding="utf-8"))
    assert description["source"] in found.stdout
    assert description["kind"] in ("watershed", "simulated")


def test_folder_that_cannot_be_made_is_a_message_not_a_traceback(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    found = _run("simulate", "--out", occupied / "valley")
    assert found.returncode == 1
    assert str(occupied) in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("step", [step[0] for step in cli.STEPS])
def test_every_step_has_help(step, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([step, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.count("--") > 1


def test_unknown_step_is_refused():
    found = _run("no-such-step")
    assert found.returncode == 2
    assert "invalid choice" in found.stderr
