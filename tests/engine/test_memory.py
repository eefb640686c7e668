"""Memory does not grow with the area (row R7, reduced; benchmarks/memory.py measures the rest)."""

import importlib.util
import sys
from pathlib import Path

import pytest
import tiny_models

from miso_qgis.engine.manifest import WindowSpec

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_is_flat_from_1_to_16_megapixels(tmp_path):
    specification = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    model = tiny_models.write_model(tmp_path / "model", tiny_models.manifest(WindowSpec()))
    small, large = (benchmark.measured(model, size, 1.0) for size in (1000, 4000))
    assert (small["valid_mpx"], large["valid_mpx"]) == (1.0, 16.0)
    assert large["peak_mb"] < 1500
    # The cache of 64 MB fills on the larger area only; a whole-area array of one float would be 61 MB more each.
    assert large["peak_mb"] - small["peak_mb"] < 100
