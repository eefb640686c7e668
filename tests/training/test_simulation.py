"""The simulated valley: seeded, valid, tagged, and with land cover that follows the terrain."""

import numpy as np
import pytest
import rasterio

from training import simulation


@pytest.fixture(scope="module")
def valley(tmp_path_factory):
    return simulation.simulate_valley(tmp_path_factory.mktemp("valley"), seed=1)


def test_rasters_are_georeferenced_tagged_and_have_no_colours(valley):
    for path in valley.values():
        with rasterio.open(path) as source:
            assert source.crs == "EPSG:32606"
            assert source.res == (50.0, 50.0)
            assert source.nodata is not None
            assert source.tags()["SIMULATED"] == "yes"
            assert source.colorinterp[0] == rasterio.enums.ColorInterp.gray
            assert (source.read(1) != source.nodata).all()


def test_seed_repeats_and_changes_the_landscape(tmp_path, valley):
    again = simulation.simulate_valley(tmp_path / "again", seed=1)
    other = simulation.simulate_valley(tmp_path / "other", seed=2)
    assert again["dem"].read_bytes() == valley["dem"].read_bytes()
    assert other["dem"].read_bytes() != valley["dem"].read_bytes()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_land_cover_follows_the_terrain(seed):
    elevation = simulation.simulated_elevation(seed)
    classes = simulation.simulated_land_cover(elevation, seed)
    assert elevation.min() == pytest.approx(simulation.RELIEF_M[0])
    assert elevation.max() == pytest.approx(simulation.RELIEF_M[1])
    values, counts = np.unique(classes, return_counts=True)
    assert set(values) == {41, 42, 43, 52, 90}
    assert counts.min() > 50
    # Rows run south: terrain that rises with the row rises to the south and so faces north.
    faces_north = np.gradient(elevation, 50.0)[0] > 0.05
    faces_south = np.gradient(elevation, 50.0)[0] < -0.05
    assert (classes[faces_north] == 42).mean() > 2 * (classes[faces_south] == 42).mean()
    assert (classes[faces_south] == 41).mean() > 2 * (classes[faces_north] == 41).mean()
    assert np.median(elevation[classes == 90]) < np.median(elevation)
    assert np.median(elevation[classes == 52]) > np.quantile(elevation, 0.8)
