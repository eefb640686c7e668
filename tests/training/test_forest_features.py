"""Features at sites: the engine's own, on windows around the sites only, and a reason for every site without."""

import forest_scene
import numpy as np
import pytest
from rasterio.crs import CRS

from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.grid import Grid
from miso_qgis.engine.manifest import ForestFeature
from training import forest_features
from training.forest_features import BUFFERS_TRIED_M, feature_specs, pixels_of, read_features


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return forest_scene.write(tmp_path_factory.mktemp("scene"))


def centre(row, column):
    return forest_scene.LEFT + 10 * column + 5, forest_scene.TOP - 10 * row - 5


def places(*pixels):
    return np.array([centre(*pixel) for pixel in pixels]).T


def disc_mean(channel, row, column, radius_px):
    """Mean over the pixels whose centre is within the radius, straight from the definition."""
    rows, columns = np.mgrid[0 : forest_scene.HEIGHT, 0 : forest_scene.WIDTH]
    near = np.hypot(rows - row, columns - column) <= radius_px
    return np.nanmean(forest_scene.channels()[channel].astype(np.float64)[near])


def test_features_are_disc_means_in_order_and_pixel_centres(dataset):
    pixels = [(0, 0), (89, 150), (45, 58), (63, 64), (64, 63)]  # corners, beside the hole, at a square's corner
    features = [f for d in BUFFERS_TRIED_M for f in feature_specs(dataset.channels, d, coordinates=False)]
    features += [ForestFeature("x"), ForestFeature("y")]
    x, y = places(*pixels)
    found = read_features(dataset, x + 4.9, y - 4.9, features)
    assert found.valid.all()
    assert found.report() == ""
    for site, (row, column) in enumerate(pixels):
        expected = [disc_mean(c, row, column, d / 10) for d in BUFFERS_TRIED_M for c in range(3)]
        np.testing.assert_allclose(found.values[site, :-2], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.values[:, -2:], np.stack([x, y], axis=1).astype(np.float32))


def test_sites_without_features_are_counted_by_reason(dataset):
    x, y = places((41, 61), (44, 67), (20, 20), (-1, 5), (5, 151), (39, 61))
    found = read_features(dataset, x, y, feature_specs(dataset.channels))
    assert found.valid.tolist() == [False, False, True, False, False, True]
    assert np.isnan(found.values[~found.valid]).all()
    assert found.missing == {"outside the area": 2, "no value in east": 2}
    assert found.report() == (
        "4 of 6 sites have no features and are left out (2 no value in east; 2 outside the area)."
    )


def test_only_windows_around_sites_are_read(dataset, monkeypatch):
    windows = []
    original = ChannelStack.read

    def spied(self, row, column, height, width):
        windows.append((height, width))
        return original(self, row, column, height, width)

    monkeypatch.setattr(ChannelStack, "read", spied)
    x, y = places((10, 10), (12, 17), (80, 140), (0, 0), (63, 63))
    read_features(dataset, x, y, feature_specs(dataset.channels, 50.0))
    # Squares of 64 px: four of the sites lie in the first, one in another; 5 px around them.
    assert sorted(windows) == [(11, 11), (74, 74)]
    assert max(max(window) for window in windows) <= forest_features.BLOCK_PX + 10


def test_the_order_of_sites_does_not_matter(dataset):
    generator = np.random.default_rng(1)
    x = forest_scene.LEFT + generator.uniform(0, 1510, 60)
    y = forest_scene.TOP - generator.uniform(0, 900, 60)
    features = feature_specs(dataset.channels)
    shuffled = generator.permutation(60)
    once, again = read_features(dataset, x, y, features), read_features(dataset, x[shuffled], y[shuffled], features)
    np.testing.assert_array_equal(once.values[shuffled], again.values)


def test_columns_picks_features_by_what_they_are(dataset):
    x, y = places((20, 20), (30, 90))
    features = (*feature_specs(dataset.channels, 50.0), *feature_specs(dataset.channels, 0.0, coordinates=False))
    table = read_features(dataset, x, y, features)
    chosen = table.columns((ForestFeature("y"), ForestFeature("wet", 0.0)))
    np.testing.assert_array_equal(chosen.values[:, 0], y.astype(np.float32))
    np.testing.assert_array_equal(chosen.values[:, 1], forest_scene.channels()[0, [20, 30], [20, 90]])


def test_pixels_are_half_open_and_other_crs_are_reached():
    grid = Grid.covering((300_000.0, 1_690_000.0, 301_000.0, 1_691_000.0), CRS.from_epsg(3338), 10.0)
    left, _, _, top = grid.bounds
    row, column = pixels_of(grid, np.array([left, left + 9.99, left + 10]), np.array([top, top - 9.99, top - 10]))
    assert row.tolist() == [0, 0, 1]
    assert column.tolist() == [0, 0, 1]
    utm = Grid.covering((468_000.0, 7_220_000.0, 469_000.0, 7_221_000.0), CRS.from_epsg(32606), 10.0)
    # The centre of pixel (37, 58), taken to Alaska Albers by PROJ and back by the function.
    from rasterio.warp import transform

    xs, ys = utm.centres(37, 58, 1, 1)
    (x,), (y,) = transform("EPSG:32606", "EPSG:3338", xs.tolist(), ys.tolist())
    row, column = pixels_of(utm, np.array([x, np.inf]), np.array([y, 0.0]))
    assert row.tolist() == [37, -1]
    assert column.tolist() == [58, -1]
