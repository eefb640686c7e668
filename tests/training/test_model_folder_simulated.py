"""The committed folder of the simulated landscape: sound, within budget, and saying everywhere that it is simulated."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from miso_qgis.engine.session import Model, read_model_files
from training.sites import CLASSES

FOLDER = Path(__file__).resolve().parents[2] / "models" / "alaska-simulated"
BUDGET_BYTES = 10_000_000  # zipped, with its forests


@pytest.fixture(scope="module")
def files():
    return read_model_files(FOLDER, ("miso", "rf"))


def test_it_says_that_it_is_simulated_wherever_it_speaks(files):
    manifest = files.manifest
    assert manifest.simulated
    assert "imulated" in manifest.title
    assert manifest.limits[0].startswith("Simulated")
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
    assert card[2].startswith("**SIMULATED.")
    assert "simulated" in FOLDER.name


def test_it_predicts_both_tasks_by_both_models_and_fits_its_budget(files):
    manifest = files.manifest
    assert set(manifest.tasks) == set(manifest.forests) == {"nsp", "soil_order"}
    assert manifest.tasks["soil_order"].classes == CLASSES["soil_order"]
    assert sum(len(zlib.compress(path.read_bytes(), 9)) for path in FOLDER.iterdir()) < BUDGET_BYTES
    assert manifest.tasks["nsp"].curves["miso"]["SH-1km"]["recall"][0] == pytest.approx(1.0)


def test_orders_of_the_rounded_forest_sum_to_one(files):
    model = Model(files, "cpu")
    forest = files.manifest.forests["soil_order"]
    features = np.random.default_rng(1).normal(0, 1000, (50, len(forest.features))).astype(np.float32)
    (found,) = model._sessions[forest.file].run(["probabilities"], {"features": features})
    assert found.shape == (50, 7)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=5e-3)  # leaves are stored in 8 bits
