"""Baselines: features from the engine, tuning on the training points only, and the exported forest's parity."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from rasterio.transform import Affine  # noqa: E402

from miso_qgis.engine.grid import Grid  # noqa: E402
from miso_qgis.engine.manifest import TerrainSpec  # noqa: E402
from training import baselines, cpcrw, metrics  # noqa: E402
from training.forest_export import PARITY, export_forest  # noqa: E402
from training.observations import Observations  # noqa: E402


@pytest.fixture(scope="module")
def stack():
    generator = np.random.default_rng(1)
    specs = cpcrw.channel_specs()
    grid = Grid(CRS.from_epsg(3338), Affine(10.0, 0.0, 300005.0, 0.0, -10.0, 1700005.0), 60, 70)
    channels = generator.normal(size=(len(specs), 60, 70)).astype(np.float32)
    channels[[spec.name for spec in specs].index("stream_power_index")] = generator.lognormal(8, 3, (60, 70))
    channels[:, :3, :5] = np.nan
    valid = np.isfinite(channels).all(axis=0)
    return cpcrw.WatershedStack(channels, tuple(s.name for s in specs), grid, valid, TerrainSpec(50.0, (0, 1, 0, 1)))


def _places(count, seed, stack):
    """Places whose label follows the elevation within 50 m, in blocks."""
    generator = np.random.default_rng(seed)
    row, col = generator.integers(10, 55, count), generator.integers(10, 60, count)
    table = baselines.FeatureMap(stack, coordinates=False)
    label = (table.at_cells(row, col)[:, 0] + generator.normal(0, 0.05, count) > 0).astype(np.uint8)
    zeros = np.zeros(count, dtype=np.int64)
    x, y = 300010.0 + 10.0 * col, 1700000.0 - 10.0 * row
    return Observations(x, y, row, col, label, zeros, zeros, row // 5, zeros, zeros)


def test_features_are_means_of_the_81_cells_within_50_m(stack):
    table = baselines.FeatureMap(stack, coordinates=True)
    down, right = np.mgrid[-5:6, -5:6]
    disc = np.hypot(down, right) <= 5
    assert disc.sum() == 81
    expected = stack.channels[:, 25:36, 35:46][:, disc].mean(axis=1)
    found = table.at_cells(np.array([30]), np.array([40]))[0]
    assert found[:-2] == pytest.approx(expected, rel=1e-4)
    assert found[-2:] == pytest.approx([300005.0 + 405.0, 1700005.0 - 305.0])
    assert table.names[-2:] == ("x", "y")


def test_missing_cells_do_not_count(stack):
    found = baselines.FeatureMap(stack, coordinates=False).at_cells(np.array([4]), np.array([6]))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("settings", baselines.FOREST_SETTINGS[::3], ids=str)
def test_exported_forest_agrees_with_scikit_learn(stack, settings):
    points, others = _places(600, 1, stack), _places(900, 2, stack)
    table = baselines.FeatureMap(stack, coordinates=False)
    model = baselines.BASELINES["rf"].make(settings, 1, True).fit(table.at(points), points.label)
    proto = export_forest(model, 2)
    # Values that lie exactly on thresholds are where rounding would show.
    features = table.at(others)
    for column in range(features.shape[1]):
        tree = model.estimators_[column].tree_
        on_threshold = tree.threshold[tree.feature == column].astype(np.float32)
        features[: on_threshold.size, column] = on_threshold[: features.shape[0]]
    (found,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"features": features})
    assert found.shape == (900, 1)
    assert found.dtype == np.float32
    assert np.abs(found[:, 0] - model.predict_proba(features)[:, 1]).max() < PARITY


def test_exported_forest_uses_standard_domains_only_and_an_ir_that_older_runtimes_load(stack):
    points = _places(200, 1, stack)
    model = baselines.BASELINES["rf"].make({"max_depth": 3}, 1, True)
    proto = export_forest(model.fit(np.zeros((200, 4)) + points.label[:, None], points.label), 2)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx.ml"}
    assert proto.ir_version <= 9
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["features", "probabilities"]


def test_tuning_prefers_the_setting_that_carries_over(stack):
    points = _places(500, 3, stack)
    table = baselines.FeatureMap(stack, coordinates=False)
    useless, useful = {"max_depth": 8, "min_samples_leaf": 240}, {"max_depth": 8, "min_samples_leaf": 5}
    baseline = baselines.Baseline("rf", False, baselines.BASELINES["rf"].make, (useless, useful))
    assert baselines.tuned(baseline, table.at(points), points.label, points.block_id, 1) == useful


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_fitter_learns_and_says_what_it_chose(stack, name, monkeypatch):
    monkeypatch.setattr(baselines, "SEARCH_TREES", 10)
    monkeypatch.setattr(baselines, "TREES", 20)
    baseline = baselines.BASELINES[name]
    chosen = []
    predict = baselines.fitter(baseline, baselines.FeatureMap(stack, baseline.coordinates), chosen)(
        _places(500, 4, stack), 1
    )
    others = _places(400, 5, stack)
    # Pairs (present, absent) in the right order; a model that learned nothing has half of them.
    assert metrics.Ranking(others.label, predict(others)).measure()["roc_auc"] > 0.8
    assert chosen[0] in baseline.settings


def test_bundled_forest_takes_the_features_of_the_manifest():
    path = Path(__file__).resolve().parents[2] / "models" / "cpcrw" / "rf_nsp.onnx"
    if not path.is_file():
        pytest.skip("models/cpcrw/rf_nsp.onnx has not been made")
    assert path.stat().st_size < 6_000_000
    session = onnxruntime.InferenceSession(path.read_bytes())
    (source,) = session.get_inputs()
    assert (source.name, source.shape[1]) == ("features", len(cpcrw.forest_features(False)))
    features = np.random.default_rng(1).normal(size=(500, source.shape[1])).astype(np.float32)
    (found,) = session.run(None, {"features": features})
    assert found.shape == (500, 1)
    assert found.min() >= 0
    assert found.max() <= 1
