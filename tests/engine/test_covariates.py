"""The channels on the grid: both sides of 180 degrees, terrain on the DEM's own pixels, reads beyond the grid."""

import numpy as np
import pytest
import rasterio
import scenes
from rasterio.crs import CRS
from rasterio.env import get_gdal_config
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import Grid
from miso_qgis.engine.manifest import ChannelSpec, InputSpec, TerrainSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.progress import Silent
from miso_qgis.engine.rasters import READ_MARGIN_PX, gdal_settings

ALBERS = CRS.from_epsg(3338)
FIELD = InputSpec("continuous", "Field", "", (-1e7, 1e7))
DEM = InputSpec("continuous", "Digital elevation model", "m", (-100.0, 6500.0), 10.0)
STATISTICS = (0.0, 1.0, 0.0, 1.0)


class Notes(Silent):
    def __init__(self):
        self.texts = []

    def note(self, level, text):
        self.texts.append(text)


def stack_of(tmp_path, path, grid, by="value", spec=FIELD, terrain=None, progress=None):
    channels = [ChannelSpec(word.split(".")[-1], "field", word) for word in ([by] if isinstance(by, str) else by)]
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    source = {"field": RasterSource(str(path))}
    return ChannelStack({"field": spec}, channels, terrain, source, grid, scratch, progress or Silent())


# Antimeridian (row R11). The field is y in Alaska Albers, a smooth function on both sides of 180 degrees.

PLACES = {
    "Attu": (-2_137_222.0, 500_000.0),
    "180 degrees": (-1_760_000.0, 430_000.0),
    "Adak": (-1_533_399.0, 350_000.0),
}


def field(longitude, latitude):
    _, y = transform_points("EPSG:4326", "EPSG:3338", longitude.ravel().tolist(), latitude.ravel().tolist())
    return np.reshape(y, longitude.shape) / 1000.0


def write_global(path, first, last, step=0.05):
    """A raster of the field between two longitudes, 48 to 58 degrees north; longitudes may exceed 180."""
    longitude, latitude = np.meshgrid(np.arange(first, last, step) + step / 2, np.arange(58.0, 48.0, -step) - step / 2)
    values = field((longitude + 180.0) % 360.0 - 180.0, latitude).astype(np.float32)
    transform = Affine(step, 0, first, 0, -step, 58.0)
    return scenes.write_raster(path, values, crs="EPSG:4326", transform=transform, nodata=-9999.0)


def write_pair(path):
    """East and west of 180 degrees in two files, as tiles come, joined by a virtual raster over -180..180."""
    east = write_global(path.parent / "east.tif", 165.0, 180.0)
    west = write_global(path.parent / "west.tif", -180.0, -165.0)
    sources = ""
    for name, offset in ((east, 6900), (west, 0)):
        sources += (
            f"<ComplexSource><SourceFilename>{name}</SourceFilename><SourceBand>1</SourceBand><NODATA>-9999</NODATA>"
            f'<SrcRect xOff="0" yOff="0" xSize="300" ySize="200"/>'
            f'<DstRect xOff="{offset}" yOff="0" xSize="300" ySize="200"/></ComplexSource>'
        )
    path = path.with_suffix(".vrt")
    path.write_text(
        '<VRTDataset rasterXSize="7200" rasterYSize="200"><SRS>EPSG:4326</SRS>'
        "<GeoTransform>-180, 0.05, 0, 58, 0, -0.05</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1"><NoDataValue>-9999</NoDataValue>{sources}</VRTRasterBand>'
        "</VRTDataset>"
    )
    return str(path)


def write_utm(path):
    """UTM zone 60N, whose 177 degrees east is west of 180, read far to its east."""
    transform, height, width = Affine(4000, 0, 100_000, 0, -4000, 6_400_000), 280, 420
    _, y = scenes.centres("EPSG:32660", transform, height, width)
    return scenes.write_raster(path, (y / 1000).astype(np.float32), crs="EPSG:32660", transform=transform)


def write_albers(path):
    transform, height, width = Affine(4000, 0, -2_500_000, 0, -4000, 900_000), 250, 350
    _, y = scenes.centres("EPSG:3338", transform, height, width)
    return scenes.write_raster(path, (y / 1000).astype(np.float32), transform=transform)


SOURCES = {
    "-180..180": lambda path: write_global(path, -180.0, 180.0),
    "0..360": lambda path: write_global(path, 0.0, 360.0),
    "165..235": lambda path: write_global(path, 165.0, 235.0),
    "pair": write_pair,
    "UTM 60N": write_utm,
    "3338": write_albers,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return {name: write(folder / f"{number}.tif") for number, (name, write) in enumerate(SOURCES.items())}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("source", SOURCES)
def test_no_pixel_is_lost_or_moved_at_180_degrees(source, place, world, tmp_path):
    x, y = PLACES[place]
    grid = Grid.covering((x - 60_000, y - 60_000, x + 60_000, y + 60_000), ALBERS, 1000.0)
    with stack_of(tmp_path, world[source], grid) as stack:
        got = stack.read(0, 0, *grid.shape)[0]
    _, ys = grid.centres(0, 0, *grid.shape)
    assert not np.isnan(got).any()
    # 0.05 km of 4 to 6 km pixels: what bilinear interpolation of a curved field costs.
    np.testing.assert_allclose(got, np.broadcast_to(ys[:, None] / 1000.0, got.shape), atol=0.05)


# Terrain.


def write_hill(path, resolution, crs="EPSG:32606", size_m=3000.0, wiggle=0.0):
    """A plane of exactly 10 degrees that falls to the north, so aspect is 0 and slope 10 in UTM."""
    count = round(size_m / resolution)
    transform = Affine(resolution, 0, 500_000, 0, -resolution, 7_200_000)
    rows = (np.arange(count) + 0.5)[:, None] * resolution
    columns = np.arange(count)[None]
    # Row 0 is in the north: the plane rises with the row.
    z = 300 + rows * np.tan(np.radians(10)) + wiggle * ((columns % 2) - 0.5) + 0 * columns
    return scenes.write_raster(path, z.astype(np.float32), crs=crs, transform=transform, nodata=-9999.0)


UTM = CRS.from_epsg(32606)
INSIDE = (500_700.0, 7_197_700.0, 502_300.0, 7_199_300.0)
NAMES = ("terrain.elevation", "terrain.slope", "terrain.aspect_sin", "terrain.aspect_cos")


@pytest.mark.parametrize("resolution", [10.0, 30.0, 4.0])
def test_slope_and_aspect_of_a_plane_survive_derivation_and_warping(resolution, tmp_path):
    notes = Notes()
    grid = Grid.covering(INSIDE, UTM, 10.0)
    hill = write_hill(tmp_path / "dem.tif", resolution)
    with stack_of(tmp_path, hill, grid, NAMES, DEM, TerrainSpec(10.0, STATISTICS), notes) as stack:
        elevation, slope, sine, cosine = stack.read(0, 0, *grid.shape)
    np.testing.assert_allclose(slope, 10.0, atol=1e-3)
    np.testing.assert_allclose(sine, 0.0, atol=1e-4)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-4)
    _, ys = grid.centres(0, 0, *grid.shape)
    expected = 300 + (7_200_000 - ys) * np.tan(np.radians(10))
    # A mean over 2.5 source pixels of 4 m takes whole pixels at its rim: up to 0.2 m of position, 0.04 m of height.
    np.testing.assert_allclose(elevation, np.broadcast_to(expected[:, None], elevation.shape), atol=0.05)
    words = {10.0: None, 30.0: "smoother than the model expects", 4.0: "averaged to 10 m"}[resolution]
    assert (notes.texts == []) if words is None else any(words in text for text in notes.texts)


def test_a_finer_dem_is_averaged_before_terrain_is_derived(tmp_path):
    # A saw tooth of 1 m from column to column vanishes in the mean of ten columns.
    grid = Grid.covering(INSIDE, UTM, 10.0)
    hill = write_hill(tmp_path / "dem.tif", 2.0, wiggle=1.0)
    with stack_of(tmp_path, hill, grid, NAMES, DEM, TerrainSpec(20.0, STATISTICS)) as stack:
        np.testing.assert_allclose(stack.read(0, 0, *grid.shape)[1], 10.0, atol=2e-3)


def test_a_dem_in_degrees_gives_the_terrain_of_the_utm_zone(tmp_path):
    # 500 km east is the central meridian of zone 6, where grid north is true north.
    transform = Affine(0.0002, 0, -147.03, 0, -0.0001, 64.94)
    columns, rows = np.meshgrid(np.arange(400) + 0.5, np.arange(400) + 0.5)
    x, y = transform_points(
        "EPSG:4326",
        "EPSG:32606",
        (transform.c + columns * transform.a).ravel().tolist(),
        (transform.f + rows * transform.e).ravel().tolist(),
    )
    z = 300 + (7_203_000 - np.reshape(y, columns.shape)) * np.tan(np.radians(10))
    path = scenes.write_raster(tmp_path / "dem.tif", z.astype(np.float32), crs="EPSG:4326", transform=transform)
    centre_x, centre_y = np.mean(x), np.mean(y)
    grid = Grid.covering((centre_x - 500, centre_y - 500, centre_x + 500, centre_y + 500), UTM, 10.0)
    with stack_of(tmp_path, path, grid, NAMES, DEM, TerrainSpec(10.0, STATISTICS)) as stack:
        _, slope, sine, cosine = stack.read(0, 0, *grid.shape)
    np.testing.assert_allclose(slope, 10.0, atol=0.05)
    np.testing.assert_allclose(np.hypot(sine, cosine), 1.0, atol=1e-3)
    np.testing.assert_allclose(sine, 0.0, atol=0.01)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-3)


def test_a_hole_of_the_dem_is_missing_in_every_terrain_channel(tmp_path):
    path = write_hill(tmp_path / "dem.tif", 10.0)
    with rasterio.open(path, "r+") as dataset:
        z = dataset.read(1)
        z[120:130, 140:150] = -9999.0
        dataset.write(z, 1)
    grid = Grid.covering((500_000.0, 7_197_000.0, 503_000.0, 7_200_000.0), UTM, 10.0)
    with stack_of(tmp_path, path, grid, NAMES, DEM, TerrainSpec(10.0, STATISTICS)) as stack:
        got = stack.read(0, 0, *grid.shape)
    for channel in got:
        np.testing.assert_array_equal(np.isnan(channel), z == -9999.0)


def test_terrain_does_not_depend_on_where_the_grid_is_cut(tmp_path):
    path = write_hill(tmp_path / "dem.tif", 10.0, wiggle=3.0)
    terrain = TerrainSpec(10.0, STATISTICS)
    names = (*NAMES, "terrain.topographic_position_index", "terrain.saga_wetness_index")
    whole = Grid.covering((500_500.0, 7_197_500.0, 502_500.0, 7_199_500.0), UTM, 10.0)
    part = whole.part(50, 60, 70, 80)
    results = []
    for number, (grid, row, column) in enumerate([(whole, 50, 60), (part, 0, 0)]):
        (tmp_path / str(number)).mkdir()
        with stack_of(tmp_path / str(number), path, grid, names, DEM, terrain) as stack:
            results.append(stack.read(row, column, 70, 80))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_a_dem_too_small_for_terrain_is_refused(tmp_path):
    path = write_hill(tmp_path / "dem.tif", 10.0, size_m=60.0)
    grid = Grid.covering((500_000.0, 7_199_940.0, 500_060.0, 7_200_000.0), UTM, 10.0)
    with pytest.raises(InputError, match=r"only 6 x 6 of its pixels.*beyond the area"):
        stack_of(tmp_path, path, grid, NAMES, DEM, TerrainSpec(10.0, STATISTICS))


# Reading.


def test_reads_may_leave_the_grid_and_see_what_lies_there(tmp_path):
    path = scenes.write_elevation(tmp_path / "dem.tif")
    grid = Grid(ALBERS, Affine(10, 0, scenes.LEFT + 300, 0, -10, scenes.TOP - 200), 40, 50)
    with stack_of(tmp_path, path, grid) as stack:
        got = stack.read(-30, -40, 100, 150)[0]
        beyond = stack.read(-READ_MARGIN_PX - 20, 0, 10, 10)
    full = scenes.elevation_on()
    np.testing.assert_allclose(got[10:97, 10:113], full[0:87, 0:103], atol=1e-3)
    assert np.isnan(got[:10]).all()
    assert np.isnan(got[:, :10]).all()
    assert np.isnan(beyond).all()


def test_stray_values_outside_the_range_are_missing_and_counted(tmp_path, monkeypatch):
    from miso_qgis.engine import covariates

    values = scenes.elevation_on()
    values[33, 44] = -32768.0
    path = scenes.write_raster(tmp_path / "dem.tif", values)
    # As on a raster of which only a part is looked at before.
    monkeypatch.setattr(covariates, "check_values", lambda *arguments: [])
    grid = Grid(ALBERS, scenes.NATIVE, scenes.HEIGHT, scenes.WIDTH)
    with stack_of(tmp_path, path, grid, "value", DEM) as stack:
        got = stack.read(0, 0, *grid.shape)[0]
        assert stack.masked_out_of_range == {"field": 1}
    np.testing.assert_array_equal(np.isnan(got), values == -32768.0)


def test_one_hot_channels_are_0_1_or_missing_and_the_nearest_pixel_decides(tmp_path):
    path = scenes.write_classes(tmp_path / "nlcd.tif")
    channels = [ChannelSpec(f"nlcd_{code}", "nlcd", "one_hot", code) for code in (41, 42, 52)]
    inputs = {"nlcd": InputSpec("classes", "Land cover", legend={"41": "a", "42": "b", "52": "c"})}
    grid = Grid(ALBERS, Affine(5, 0, scenes.LEFT, 0, -5, scenes.TOP), scenes.HEIGHT * 2, scenes.WIDTH * 2)
    with ChannelStack(inputs, channels, None, {"nlcd": RasterSource(path)}, grid, tmp_path, Silent()) as stack:
        got = stack.read(0, 0, *grid.shape)
    codes = np.kron(scenes.classes(), np.ones((2, 2), np.uint8))
    for code, channel in zip((41, 42, 52), got):
        np.testing.assert_array_equal(channel, np.where(codes == 0, np.nan, codes == code))


def test_gdal_caches_what_was_meant():
    with gdal_settings():
        assert get_gdal_config("GDAL_CACHEMAX") == 32_000_000
