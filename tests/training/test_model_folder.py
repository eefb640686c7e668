"""The committed model folder: complete, unaltered, within budget, and saying what the contract wants it to say."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio

from miso_qgis.engine.graphs import check_graph
from miso_qgis.engine.manifest import read_manifest
from miso_qgis.engine.messages import PredictJob, RasterSource
from miso_qgis.engine.predict import predict
from miso_qgis.engine.progress import Silent
from training import cpcrw
from training.simulation import simulate_valley

FOLDER = Path(__file__).resolve().parents[2] / "models" / "cpcrw"
BUDGET_BYTES = 9_000_000  # zipped, with its Random Forest


def sums():
    lines = (FOLDER / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    return dict(reversed(line.split("  ", 1)) for line in lines)


def test_every_file_is_listed_with_its_digest():
    present = {path.name for path in FOLDER.iterdir() if path.name != "SHA256SUMS"}
    assert present == set(sums())
    for name, digest in sums().items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest


def test_the_folder_fits_its_budget():
    assert sum(len(zlib.compress(path.read_bytes(), 9)) for path in FOLDER.iterdir()) < BUDGET_BYTES


def test_channels_are_those_that_training_uses_and_have_ranges():
    manifest = read_manifest(FOLDER)
    assert [c.name for c in manifest.channels] == [c.name for c in cpcrw.channel_specs()]
    assert all(c.range is not None and c.range[0] < c.range[1] for c in manifest.channels)
    assert manifest.terrain is not None
    assert not manifest.simulated


def test_graphs_are_self_contained_and_answer_probabilities_even_for_windows_without_data():
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed in this environment")
    manifest = read_manifest(FOLDER)
    sessions = {}
    for name in ("encoder", "decoder"):
        data = (FOLDER / f"{name}.onnx").read_bytes()
        assert check_graph(data)[""] == 18
        sessions[name] = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    side = manifest.window.size_px
    raw = {group.name: np.full((2, len(group.channels), side, side), np.nan, np.float32) for group in manifest.groups}
    for group in manifest.groups:
        for i, channel in enumerate(group.channels):
            raw[group.name][1, i] = np.mean(channel.range)
    names = [output.name for output in sessions["encoder"].get_outputs()]
    maps = dict(zip(names, sessions["encoder"].run(None, raw)))
    at = np.arange(3, dtype=np.float32) + 100.5
    (nsp,) = sessions["decoder"].run(["nsp"], {"rows": at, "columns": at[:2], **maps})
    assert nsp.shape == (2, 1, 3, 2)
    assert np.isfinite(nsp).all()
    assert nsp.min() > 0
    assert nsp.max() < 1


def test_the_card_says_what_pretraining_saw_and_how_miso_compares():
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "whole watershed" in card
    assert "must not be used" in card
    assert "GPL-2.0-or-later" in card
    assert "beats its baselines" in card or "Not yet measured" in card


def _second_differences(surface, lag):
    """Second difference along columns at a lag, and the column in its middle."""
    bends = surface[:, 2 * lag :] - 2 * surface[:, lag:-lag] + surface[:, : -2 * lag]
    return bends, np.arange(lag, surface.shape[1] - lag)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_map_shows_neither_tokens_nor_attention_windows(seed, tmp_path):
    # A map of the ground does not know where tokens (80 m) or attention windows (640 m) lie. The first bundled networks
    # did: 1.20 to 1.27 and 0.18 to 0.23 on these landscapes; these have at most 1.15 and 0.14; the forest, which has no
    # lattice, 1.04 and 0.03.
    job = PredictJob(
        model=str(FOLDER),
        inputs={name: RasterSource(str(path)) for name, path in simulate_valley(tmp_path, seed).items()},
        output_dir=str(tmp_path / "out"),
        models=("miso",),
    )
    predict(job, Silent())
    with rasterio.open(tmp_path / "out" / "nsp_probability_miso.tif") as source:
        surface = source.read(1, masked=True).filled(np.nan)
    for turned in (surface, surface.T):
        bends, column = _second_differences(turned, 4)
        by_place = [np.nanmean(np.abs(bends[:, column % 32 // 4 == place])) for place in range(8)]
        assert max(by_place) / np.median(by_place) < 1.18
        by_token = [np.nanmean(bends[:, column % 8 == place]) for place in range(8)]
        assert (max(by_token) - min(by_token)) / np.nanmean(np.abs(bends)) < 0.17
