"""Training in processes of their own: killed and going on, stopped by a signal, and shared by two with torchrun."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

torch.set_num_threads(1)

import tiny_dataset  # noqa: E402

from training import cli  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 40
PATIENCE_S = 240

WORKER = """
import sys
import torch
from pathlib import Path
torch.set_num_threads(1)
from training import features
from training.dataset import read_dataset
from training.model import Miso
from training.objectives import Objective
from training.recipes import read_recipe
from training.sampling import Labelled, Sampler
from training.scenes import open_scene
from training.surveys import load_sites
from training.world import World, world

def gradients(processes, folder, supervised):
    recipe, dataset = read_recipe(folder / "recipe.toml"), read_dataset(folder / "tiny" / "dataset.json")
    with open_scene(dataset, recipe.size) as scene:
        config = features.model_config(dataset, scene, recipe, dataset.tasks)
        labelled = Labelled.of(load_sites(dataset)[0], scene, dataset.tasks) if supervised else None
        drawn = Sampler(scene, config, recipe, 3, labelled).draw(5, processes.part(recipe.fit.batch)).fields
        torch.manual_seed(1)
        model = Miso(config).train()
        objective = Objective(model, recipe, processes, supervised=supervised, precision="float32")
        forward = torch.nn.parallel.DistributedDataParallel(objective) if processes.size > 1 else objective
        losses = forward(drawn)
        losses[0].backward()
        found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        return processes.total(losses) / processes.size, found

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with world("cpu") as processes:
        found = {str(kind): gradients(processes, folder, kind) for kind in (True, False)}
        if processes.leads:
            torch.save(found, folder / "two.pt")
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    tiny_dataset.write(folder / "tiny")
    text = tiny_dataset.RECIPE.replace("steps = 8", f"steps = {STEPS}")
    # Contrast during the fit as well, so that negatives across processes are part of what is compared.
    (folder / "recipe.toml").write_text(text.replace("locations = 6", "locations = 6\nfit_weight = 0.1"))
    return folder


def arguments(ground, run, step="train"):
    return [
        step,
        "--dataset",
        str(ground / "tiny"),
        "--recipe",
        str(ground / "recipe.toml"),
        "--run",
        str(run),
        "--checkpoint-steps",
        "3",
        "--log-steps",
        "1",
        "--no-tensorboard",
        "--device",
        "cpu",
    ]


def environment():
    # A second copy of the tests' own folder must not matter, nor what torchrun left in ours.
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def started(command):
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def rows(run, stage="fit/all/0"):
    path = run / "logs" / f"{stage}.csv"
    return list(csv.DictReader(path.open())) if path.is_file() else []


def wait_for(process, run, step):
    """Until a training process has logged so many steps of its fit."""
    limit = time.monotonic() + PATIENCE_S
    while len(rows(run)) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.02)


def final(run, stage="fit/all/0"):
    (path,) = (run / "checkpoints" / stage).glob("final-*.pt")
    return torch.load(path, weights_only=True)["parameters"]


@pytest.fixture(scope="module")
def unbroken(ground, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert cli.main(arguments(ground, run)) == 0
    return run


@pytest.mark.slow
def test_a_training_that_was_stopped_and_killed_ends_with_the_same_weights(ground, unbroken, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "training", *arguments(ground, run)]
    first = started(command)
    wait_for(first, run, random.randint(2, 12))
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=PATIENCE_S)[0]
    assert first.returncode == 3, said
    assert "its state is saved" in said
    assert "Traceback" not in said
    stopped = len(rows(run))
    second = started(command)
    wait_for(second, run, stopped + random.randint(2, 12))
    second.kill()
    second.communicate(timeout=PATIENCE_S)
    assert second.returncode == -signal.SIGKILL
    assert not list((run / "checkpoints" / "fit" / "all" / "0").glob("final-*"))
    assert cli.main(arguments(ground, run)) == 0
    expected, found = final(unbroken), final(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    columns = set(rows(run)[0]) - {"seconds", "windows_per_s"}
    for one, other in zip(rows(run), rows(unbroken), strict=True):
        assert all(one[column] == other[column] for column in columns)


def torchrun(*command):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    done = started([*run, f"--master-port={port}", *map(str, command)])
    return done.communicate(timeout=PATIENCE_S)[0], done.returncode


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one_with_both_batches(ground, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    said, status = torchrun(tmp_path / "worker.py", ground)
    assert status == 0, said
    two = torch.load(ground / "two.pt", weights_only=True)
    monkeypatch.syspath_prepend(tmp_path)
    import worker

    for kind in (True, False):
        loss, gradients = worker.gradients(worker.World(), ground, kind)
        assert torch.allclose(two[str(kind)][0], loss, rtol=1e-5)
        assert gradients.keys() == two[str(kind)][1].keys()
        for name, value in gradients.items():
            scale = max(float(value.abs().max()), 1e-6)
            assert float((two[str(kind)][1][name] - value).abs().max()) < 1e-4 * scale + 1e-7, name


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(ground, unbroken, tmp_path):
    run = tmp_path / "run"
    # Without the two dashes torchrun takes `--run` for an option of its own.
    said, status = torchrun("-m", "--", "training", *arguments(ground, run))
    assert status == 0, said
    assert said.count("fit/all/0: 40 steps") == 1  # one of them speaks
    for one, other in zip(rows(run), rows(unbroken), strict=True):
        # AdamW's steps have the length of the rate whatever the gradient, so rounding grows with the steps.
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4 if int(one["step"]) < 4 else 0.1)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    from miso_qgis.engine.errors import InputError
    from training.world import World

    assert list(World(1, 2).part(4)) == [2, 3]
    with pytest.raises(InputError, match="4 windows cannot be shared out evenly among 3 processes"):
        World(0, 3).part(4)
