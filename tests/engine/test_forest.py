"""Disc means of the Random Forest against direct sums."""

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine

from miso_qgis.engine.forest import disc_mean, forest_features, halo_px
from miso_qgis.engine.grid import Grid
from miso_qgis.engine.manifest import ChannelSpec, ForestFeature


@pytest.mark.parametrize(("radius_m", "pixels"), [(10.0, 5), (25.0, 21), (50.0, 81), (9.9, 1), (0.0, 1)])
def test_the_disc_holds_the_pixels_whose_centre_is_within_the_radius(radius_m, pixels):
    # 5, 21 and 81 lattice points lie in circles of radius 1, 2.5 and 5 (Gauss circle problem: 5, 21, 81).
    r = int(radius_m // 10)
    values = np.zeros((1, 21 + 2 * r, 21 + 2 * r), np.float32)
    values[0, 10 + r, 10 + r] = 1.0
    got = disc_mean(values, radius_m, 10.0)[0]
    assert got.shape == (21, 21)
    assert np.count_nonzero(got > 1e-6) == pixels
    np.testing.assert_allclose(got.max(), 1.0 / pixels, rtol=1e-6)


def test_the_mean_leaves_out_what_is_missing_and_is_missing_where_nothing_is_there():
    generator = np.random.default_rng(2)
    values = (generator.random((3, 40, 53)) * [[[1]], [[1000]], [[1e6]]]).astype(np.float32)
    values[0, 5:30, 8:33] = np.nan
    values[1, generator.random((40, 53)) < 0.3] = np.nan
    rows, columns = np.mgrid[-4:5, -4:5]
    disc = rows**2 + columns**2 <= 16
    got = disc_mean(values, 40.0, 10.0)
    windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (9, 9), axis=(1, 2))[..., disc]
    filled = np.isfinite(windows).any(-1)
    expected = np.full(filled.shape, np.nan)
    expected[filled] = np.nanmean(windows[filled], axis=-1)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_features_come_in_the_models_order_and_coordinates_are_pixel_centres():
    grid = Grid(CRS.from_epsg(3338), Affine(10, 0, 1000, 0, -10, 5000), 30, 40)
    channels = [ChannelSpec("a", "i"), ChannelSpec("b", "i")]
    features = [ForestFeature("y"), ForestFeature("b", 20.0), ForestFeature("x"), ForestFeature("a")]
    halo = halo_px(features, 10.0)
    assert halo == 2
    values = np.stack([np.full((6 + 4, 7 + 4), 3.0), np.full((6 + 4, 7 + 4), 8.0)]).astype(np.float32)
    got = forest_features(values, channels, features, grid, 4, 5, halo)
    assert got.shape == (4, 6, 7)
    assert (got[1] == 8.0).all()
    assert (got[3] == 3.0).all()
    np.testing.assert_array_equal(got[2][0], 1000 + 10 * (5.5 + np.arange(7)))
    np.testing.assert_array_equal(got[0][:, 0], 5000 - 10 * (4.5 + np.arange(6)))
