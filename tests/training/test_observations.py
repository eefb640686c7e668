"""Sampled points and open cells: the protocol's laws, on an invented map and on the watershed."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import array_bounds
from rasterio.warp import transform as warp_points
from rasterio.warp import transform_bounds

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import Grid
from training import observations, splits, watershed

needs_watershed = pytest.mark.skipif(
    watershed.data_folder() is None, reason="the watershed's files are not beside the checkout"
)


@pytest.fixture(scope="module")
def grid():
    bounds = array_bounds(*watershed.SHAPE, watershed.TRANSFORM)
    crs = rasterio.crs.CRS.from_epsg(3338)
    return Grid.covering(transform_bounds(watershed.CRS, crs, *bounds), crs, 10.0)


@pytest.fixture(scope="module")
def labels():
    """An invented map: present in the lower right of each 30 x 30 cells, with a hole."""
    rows, columns = np.indices(watershed.SHAPE)
    cells = ((rows % 30 > 14) & (columns % 30 > 14)).astype(np.uint8)
    cells[80:120, 60:100] = watershed.LABEL_NODATA
    return watershed.mask_reserved(cells)


@pytest.fixture(scope="module")
def points(labels, grid):
    return observations.sample_transects(labels, grid, seed=1, points=900)


def test_points_have_the_label_of_the_cell_they_lie_in(points, labels):
    x, y = warp_points("EPSG:3338", watershed.CRS, points.x, points.y)
    columns, rows = observations._apply(~watershed.TRANSFORM, np.asarray(x), np.asarray(y))
    assert np.array_equal(np.floor(rows), points.cell_row)
    assert np.array_equal(np.floor(columns), points.cell_col)
    assert np.array_equal(points.label, labels[points.cell_row, points.cell_col])
    assert set(points.label) == {0, 1}


def test_points_lie_at_centres_of_the_10_m_grid(points, grid):
    x = grid.transform.c + 10.0 * (points.col + 0.5)
    y = grid.transform.f - 10.0 * (points.row + 0.5)
    assert np.array_equal(x, points.x)
    assert np.array_equal(y, points.y)


def test_no_cell_is_sampled_twice(points):
    cells = set(zip(points.cell_row.tolist(), points.cell_col.tolist()))
    assert len(cells) == len(points) == 900


def test_transects_are_straight_lines_of_at_most_ten_points_50_m_apart(points):
    sizes = np.bincount(points.transect)
    assert sizes.max() == 10
    east, north = (np.asarray(a) for a in warp_points("EPSG:3338", watershed.CRS, points.x, points.y))
    for transect in np.flatnonzero(sizes == 10)[:40]:
        chosen = points.transect == transect
        steps = np.hypot(np.diff(east[chosen]), np.diff(north[chosen]))
        # Each end of a step moves to a cell centre, by up to half the diagonal of 10 m.
        assert np.abs(steps - 50.0).max() <= 14.2
        length = np.hypot(np.ptp(east[chosen]), np.ptp(north[chosen]))
        assert length == pytest.approx(450.0, abs=14.2)


def test_azimuths_point_everywhere(points):
    members = [np.flatnonzero(points.transect == transect) for transect in np.unique(points.transect)]
    first, last = np.array([(member[0], member[-1]) for member in members]).T
    moved = first != last
    quadrants = (points.x[last] > points.x[first])[moved] * 2 + (points.y[last] > points.y[first])[moved]
    assert (np.bincount(quadrants, minlength=4) > 10).all()


def test_seed_repeats_and_changes_the_sample(points, labels, grid):
    again = observations.sample_transects(labels, grid, seed=1, points=900)
    other = observations.sample_transects(labels, grid, seed=2, points=900)
    assert np.array_equal(again.x, points.x)
    assert not np.array_equal(other.x, points.x)


def test_nothing_lies_in_the_reserved_columns_even_where_the_file_has_labels(tmp_path, grid):
    everywhere = np.ones(watershed.SHAPE, dtype=np.uint8)
    everywhere[::2] = 0
    path = tmp_path / "map.tif"
    watershed.write_raster(path, everywhere, watershed.LABEL_NODATA)
    labels = observations.read_open_labels(path)
    assert (labels[:, watershed.RESERVED_FROM_COLUMN :] == watershed.LABEL_NODATA).all()
    for places in (observations.open_cells(labels, grid), observations.sample_transects(labels, grid, 1, points=2000)):
        assert places.cell_col.max() == watershed.RESERVED_FROM_COLUMN - 1
        east, _ = warp_points("EPSG:3338", watershed.CRS, places.x, places.y)
        assert max(east) < 479149.8


def test_map_of_another_grid_is_refused(tmp_path):
    shifted = rasterio.Affine(50.0, 0.0, 0.0, 0.0, -50.0, 0.0)
    path = tmp_path / "map.tif"
    with rasterio.open(path, "w", driver="GTiff", height=5, width=5, count=1, dtype="uint8", transform=shifted) as sink:
        sink.write(np.zeros((1, 5, 5), np.uint8))
    with pytest.raises(InputError, match="not on the watershed's 50 m grid"):
        observations.read_open_labels(path)


def test_more_points_than_the_area_bears_are_refused(labels, grid):
    with pytest.raises(ValueError, match="open cells"):
        observations.sample_transects(labels, grid, 1, points=60000)


def test_subset_keeps_places_together(points):
    chosen = points.label == 1
    part = points.subset(chosen)
    assert len(part) == chosen.sum()
    assert np.array_equal(part.x, points.x[chosen])
    assert np.array_equal(part.transect, points.transect[chosen])


@pytest.mark.real_data
@needs_watershed
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_point_and_cell_of_the_watershed_is_in_one_fold_with_its_whole_block(seed):
    pytest.importorskip("miso_qgis.engine.covariates")
    from training import cpcrw

    points, cells = cpcrw.load_observations(seed), cpcrw.load_open_cells()
    assert len(points) == 4000
    assert len(cells) == 30374
    for places in (points, cells):
        assert places.cell_col.max() < watershed.RESERVED_FROM_COLUMN
    for split, count in (("blocks", 5), ("random", 5), ("sector", 4)):
        of_points, of_cells = cpcrw.folds(points, split, seed), cpcrw.folds(cells, split, seed)
        assert set(of_points) == set(of_cells) == set(range(count))
        cell_fold = dict(zip(zip(cells.cell_row.tolist(), cells.cell_col.tolist()), of_cells.tolist()))
        where = zip(points.cell_row.tolist(), points.cell_col.tolist())
        assert [cell_fold[cell] for cell in where] == of_points.tolist()
        if split != "random":
            blocks = np.concatenate([points.block_id, cells.block_id])
            folds = np.concatenate([of_points, of_cells])
            assert all(np.unique(folds[blocks == block]).size == 1 for block in np.unique(blocks))
    assert np.abs(np.bincount(cpcrw.folds(cells, "blocks", seed)) / len(cells) - 0.2).max() < 0.01


def test_unknown_split_is_refused():
    pytest.importorskip("miso_qgis.engine.covariates")
    from training import cpcrw

    if watershed.data_folder() is None:
        pytest.skip("the watershed's files are not beside the checkout")
    with pytest.raises(ValueError, match="known splits are blocks, random, sector"):
        cpcrw.folds(cpcrw.load_open_cells(), splits.SPLITS[0] + "s", 1)
