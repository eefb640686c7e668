"""The target grid: aligned, covering, and only in metres."""

import numpy as np
import pytest
from rasterio.crs import CRS

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import Grid, is_equal_area, parse_target_crs

ALBERS, UTM = CRS.from_epsg(3338), CRS.from_epsg(32606)


def test_a_grid_in_alaska_albers_lies_on_the_akveg_tiles():
    # Tile AK050H048V007 (of the MISO paper's figure 9) has its corner at -2199995 + 47 * 50000, 2400005 - 6 * 50000.
    grid = Grid.covering((150005.0, 2050005.0, 200005.0, 2100005.0), ALBERS, 10.0)
    assert (grid.transform.c, grid.transform.f, grid.shape) == (150005.0, 2100005.0, (5000, 5000))


@pytest.mark.parametrize(("crs", "origin"), [(ALBERS, (-2199995.0, 2400005.0)), (UTM, (0.0, 0.0))])
@pytest.mark.parametrize("resolution", [10.0, 30.0, 0.5])
def test_a_grid_covers_its_bounds_and_no_more_than_a_pixel_beyond(crs, origin, resolution):
    bounds = (468399.79, 7222993.18, 483899.81, 7235343.11)
    grid = Grid.covering(bounds, crs, resolution)
    slack = np.array(grid.bounds) - np.array(bounds)
    assert (slack[:2] <= 1e-5).all()
    assert (slack[2:] >= -1e-5).all()
    assert np.abs(slack).max() < resolution
    steps = (np.array([grid.transform.c, grid.transform.f]) - origin) / resolution
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)


def test_covering_its_own_bounds_gives_the_same_grid_again():
    grid = Grid.covering((300001.0, 1600001.0, 300777.0, 1600555.0), ALBERS, 10.0)
    assert Grid.covering(grid.bounds, ALBERS, 10.0) == grid


def test_a_point_has_a_grid_of_one_pixel():
    assert Grid.covering((300000.0, 1600000.0, 300000.0, 1600000.0), ALBERS, 10.0).shape == (1, 1)


def test_centres_of_a_part_are_those_of_the_grid():
    grid = Grid.covering((300001.0, 1600001.0, 300777.0, 1600555.0), ALBERS, 10.0)
    x, y = grid.centres(3, -2, 5, 7)
    px, py = grid.part(3, -2, 5, 7).centres(0, 0, 5, 7)
    np.testing.assert_array_equal(x, px)
    np.testing.assert_array_equal(y, py)
    assert (x[2], y[0]) == (grid.bounds[0] + 5.0, grid.bounds[3] - 35.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EPSG:4326", "not projected"),
        ("EPSG:2225", "US survey foot"),
        ("EPSG:nonsense", "PROJ does not know it"),
        ("Alaska", "PROJ does not know it"),
        ("", "PROJ does not know it"),
    ],
)
def test_a_target_crs_that_is_not_in_metres_is_refused_with_a_remedy(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_target_crs(text)
    assert "EPSG:3338" in str(caught.value)


def test_albers_is_equal_area_and_utm_is_not():
    assert is_equal_area(ALBERS)
    assert not is_equal_area(UTM)
