"""What users really hand in (row R8 of the fault matrix): a correct map, or a message that names layer, finding, need
and remedy. Never a traceback, never a silent wrong value.

Elevation is a plane (see scenes), so the right map of every layout is known.
"""

import os
import shutil

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import scenes
import shapely
import tiny_models
from pyogrio import raw
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from miso_qgis.engine.errors import InputError, MisoError
from miso_qgis.engine.messages import PredictJob, RasterSource
from miso_qgis.engine.predict import predict
from miso_qgis.engine.progress import Silent

BOUNDS = (scenes.LEFT, scenes.TOP - scenes.HEIGHT * 10, scenes.LEFT + scenes.WIDTH * 10, scenes.TOP)


class Notes(Silent):
    def __init__(self):
        self.texts = []

    def note(self, level, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.write_model(tmp_path_factory.mktemp("model"))


def job_of(model, tmp_path, paths, **changes):
    settings = {
        "model": str(model),
        "inputs": {name: RasterSource.parse(str(path)) for name, path in paths.items()},
        "output_dir": str(tmp_path / "out"),
        "models": ("miso",),
        "threads": 1,
        **changes,
    }
    return PredictJob(**settings)


def write_polygons(path, geometries, crs="EPSG:3338", kind="Polygon"):
    fields = [np.arange(len(geometries))]
    raw.write(str(path), shapely.to_wkb(np.array(geometries, object)), fields, ["id"], geometry_type=kind, crs=crs)
    return str(path)


def wide(crs, resolution):
    """A transform and shape in another CRS that cover the scene with a margin."""
    xmin, ymin, xmax, ymax = transform_bounds("EPSG:3338", crs, *BOUNDS, densify_pts=21)
    margin = 12 * resolution
    width, height = (int(np.ceil((high - low + 2 * margin) / resolution)) for low, high in ((xmin, xmax), (ymin, ymax)))
    return Affine(resolution, 0, xmin - margin, 0, -resolution, ymax + margin), height, width


# Layouts that must give the right map. Each writes dem.tif anew and may return a note's words and a tolerance in m.


def in_utm(path):
    scenes.write_elevation(path, "EPSG:32606", *wide("EPSG:32606", 10.0))


def in_degrees(path):
    scenes.write_elevation(path, "EPSG:4326", *wide("EPSG:4326", 0.0002))


def in_degrees_0_to_360(path):
    transform, height, width = wide("EPSG:4326", 0.0002)
    values = scenes.elevation_on("EPSG:4326", transform, height, width)
    shifted = Affine(transform.a, 0, transform.c + 360.0, 0, transform.e, transform.f)
    scenes.write_raster(path, values, crs="EPSG:4326", transform=shifted, nodata=-9999.0)


def south_up(path):
    t = Affine(10, 0, scenes.LEFT, 0, 10, scenes.TOP - scenes.HEIGHT * 10)
    scenes.write_elevation(path, transform=t)


def east_to_west(path):
    t = Affine(-10, 0, scenes.LEFT + scenes.WIDTH * 10, 0, -10, scenes.TOP)
    scenes.write_elevation(path, transform=t)


def rotated(path):
    cosine, sine = 10 * np.cos(np.radians(20)), 10 * np.sin(np.radians(20))
    t = Affine(cosine, sine, scenes.LEFT - 900, sine, -cosine, scenes.TOP + 300)
    scenes.write_elevation(path, transform=t, height=300, width=320)


def wide_pixels(path):
    scenes.write_elevation(
        path, transform=Affine(14, 0, scenes.LEFT - 70, 0, -9, scenes.TOP + 45), height=120, width=115
    )


def coarser(path):
    scenes.write_elevation(
        path, transform=Affine(37, 0, scenes.LEFT - 74, 0, -37, scenes.TOP + 74), height=32, width=44
    )


def finer(path):
    scenes.write_elevation(
        path, transform=Affine(4, 0, scenes.LEFT - 20, 0, -4, scenes.TOP + 20), height=260, width=375
    )


def half_a_pixel_off(path):
    scenes.write_elevation(
        path, transform=Affine(10, 0, scenes.LEFT - 15, 0, -10, scenes.TOP + 15), height=101, width=147
    )


def scaled_integers(path):
    values = np.rint((scenes.elevation_on() - 100.0) / 0.01).astype(np.int32)
    scenes.write_raster(path, values, nodata=-99999)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.01,), (100.0,)


def unsigned_integers(path):
    scenes.write_raster(path, np.rint(scenes.elevation_on()).astype(np.uint16), nodata=65535)


def double_precision(path):
    scenes.write_raster(path, scenes.elevation_on().astype(np.float64), nodata=-1.7976931348623157e308)


def hole(values, fill):
    values = values.copy()
    values[20:31, 40:57] = fill
    return values


def nodata_declared(path):
    scenes.write_raster(path, hole(scenes.elevation_on(), -9999.0), nodata=-9999.0)


def nodata_is_nan(path):
    scenes.write_raster(path, hole(scenes.elevation_on(), np.nan), nodata=np.nan)


def nan_undeclared(path):
    scenes.write_raster(path, hole(scenes.elevation_on(), np.nan))


def infinite_inside(path):
    scenes.write_raster(path, hole(scenes.elevation_on(), np.inf), nodata=-9999.0)


def lowest_float_as_nodata(path):
    lowest = float(np.finfo(np.float32).min)
    scenes.write_raster(path, hole(scenes.elevation_on(), lowest), nodata=lowest)


def masked_by_the_file(path):
    values = scenes.elevation_on()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        scenes.write_raster(path, values)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(hole(np.full(values.shape, 255, np.uint8), 0))


def masked_by_alpha(path):
    values = np.rint(scenes.elevation_on()).astype(np.uint16)
    alpha = hole(np.full(values.shape, 65535, np.uint16), 0)
    scenes.write_raster(path, np.stack([values, alpha]))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]


def hole_in_this_band_only(path):
    plane = scenes.elevation_on()
    scenes.write_raster(path, np.stack([hole(plane, -9999.0), plane, plane]), nodata=-9999.0)


def in_strips(path):
    scenes.write_elevation(path, blockysize=scenes.HEIGHT, compress="deflate")


def in_tiles_sparse(path):
    scenes.write_elevation(path, tiled=True, blockxsize=64, blockysize=64, SPARSE_OK=True, compress="lzw")


EXACT, ROUNDED = 2e-4, 0.6  # m
WHOLE = {
    in_utm: 0.02,
    in_degrees: 0.02,
    in_degrees_0_to_360: 0.02,
    south_up: EXACT,
    east_to_west: EXACT,
    rotated: 0.05,  # GDAL widens its kernel for a rotated source: 0.4 m of position
    coarser: 0.02,
    wide_pixels: 0.02,
    finer: 0.02,
    half_a_pixel_off: 0.02,
    scaled_integers: 0.006,
    unsigned_integers: ROUNDED,
    double_precision: EXACT,
    in_strips: EXACT,
    in_tiles_sparse: EXACT,
}
WITH_HOLE = {
    nodata_declared: EXACT,
    nodata_is_nan: EXACT,
    nan_undeclared: EXACT,
    infinite_inside: EXACT,
    lowest_float_as_nodata: EXACT,
    masked_by_the_file: EXACT,
    masked_by_alpha: ROUNDED,
    hole_in_this_band_only: EXACT,
}


@pytest.mark.parametrize("layout", [*WHOLE, *WITH_HOLE], ids=lambda layout: layout.__name__)
def test_any_layout_of_the_same_terrain_gives_the_same_map(layout, model, tmp_path):
    paths = scenes.scene(tmp_path)
    os.remove(paths["dem"])
    layout(tmp_path / "dem.tif")
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(*BOUNDS)])
    result = predict(job_of(model, tmp_path, paths, aoi=aoi), Silent())

    got = scenes.read(result.outputs["nsp_probability_miso"])
    assert got.shape == (scenes.HEIGHT, scenes.WIDTH)
    valid = scenes.classes() != 0
    if layout in WITH_HOLE:
        valid = hole(valid, False)
    np.testing.assert_array_equal(got != -9999.0, valid)
    tolerance = {**WHOLE, **WITH_HOLE}[layout]
    np.testing.assert_allclose(got[valid] * 1000.0, scenes.elevation_on()[valid], atol=tolerance)
    assert result.summary["pixels"] == {"valid": valid.sum(), "nodata": (~valid).sum(), "masked": 0}


# Inputs that cannot be used. Each returns changes of the job and the words that the message must hold.


def no_crs(paths, tmp_path):
    scenes.write_raster(paths["dem"], scenes.elevation_on(), crs=None)
    return {}, ['"dem"', "dem.tif", "no coordinate reference system", "Assign"]


def local_crs(paths, tmp_path):
    crs = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    scenes.write_raster(paths["dem"], scenes.elevation_on(), crs=crs)
    return {}, ["local or engineering", "Assign"]


def not_georeferenced(paths, tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        scenes.write_raster(paths["dem"], scenes.elevation_on(), crs=None, transform=Affine.identity())
    return {}, ["not georeferenced"]


def elsewhere(paths, tmp_path):
    t = Affine(10, 0, scenes.LEFT + 500_000, 0, -10, scenes.TOP)
    scenes.write_raster(paths["dem"], scenes.elevation_on(), transform=t)
    return {}, ["share no area", "dem.tif", "nlcd.tif", "800005"]


def area_elsewhere(paths, tmp_path):
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(0, 900_000, 1000, 901_000)])
    return {"aoi": aoi}, ['"dem"', '"nlcd"', "does not overlap", "300005", "901005", "move the area"]


def area_outside_alaska(paths, tmp_path):
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(12.0, 41.0, 12.1, 41.1)], "EPSG:4326")
    return {"aoi": aoi}, ["does not overlap", '"dem"']


def area_between_pixel_centres(paths, tmp_path):
    x, y = scenes.LEFT + 501.0, scenes.TOP - 501.0
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(x, y - 2, x + 2, y)])
    return {"aoi": aoi}, ["area.gpkg", "centre of no pixel", "larger"]


def area_without_features(paths, tmp_path):
    return {"aoi": write_polygons(tmp_path / "area.gpkg", [])}, ["area.gpkg", "no polygon", "Draw"]


def area_of_lines(paths, tmp_path):
    line = shapely.LineString([(scenes.LEFT, scenes.TOP), (scenes.LEFT + 100, scenes.TOP - 300)])
    return {"aoi": write_polygons(tmp_path / "area.gpkg", [line], kind="LineString")}, ["only LineString", "polygon"]


def area_without_crs(paths, tmp_path):
    aoi = write_polygons(tmp_path / "area.shp", [shapely.box(*BOUNDS)], crs=None)
    return {"aoi": aoi}, ["area.shp", "no coordinate reference system", "Assign"]


def area_missing(paths, tmp_path):
    return {"aoi": str(tmp_path / "gone.gpkg")}, ["gone.gpkg", "does not exist"]


def area_is_a_raster(paths, tmp_path):
    return {"aoi": str(shutil.copy(paths["nlcd"], tmp_path / "a.tif"))}, ["a.tif", "vector"]


def area_with_unknown_layer(paths, tmp_path):
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(*BOUNDS)])
    return {"aoi": aoi, "aoi_layer": "other"}, ["area.gpkg", "other"]


def input_missing(paths, tmp_path):
    return {"inputs": {"dem": RasterSource(paths["dem"])}}, ['"nlcd"', "no raster was given", "Land cover"]


def input_unknown(paths, tmp_path):
    inputs = {name: RasterSource(path) for name, path in paths.items()}
    return {"inputs": {**inputs, "slope": RasterSource(paths["dem"])}}, ['"slope"', "no input of this name", "dem"]


def band_missing(paths, tmp_path):
    inputs = {"dem": RasterSource(paths["dem"], 4), "nlcd": RasterSource(paths["nlcd"])}
    return {"inputs": inputs}, ["band 4", "the file has 1"]


def same_file_twice(paths, tmp_path):
    inputs = {"dem": RasterSource(paths["nlcd"]), "nlcd": RasterSource(paths["nlcd"])}
    return {"inputs": inputs}, ["same file and band", "nlcd.tif"]


def complex_numbers(paths, tmp_path):
    scenes.write_raster(paths["dem"], scenes.elevation_on().astype(np.complex64))
    return {}, ["complex64", "Real numbers"]


def nodata_undeclared(paths, tmp_path):
    scenes.write_raster(paths["dem"], hole(scenes.elevation_on(), -32768.0))
    return {}, ["-32768", "-100", "6500", "a_nodata"]


def millimetres(paths, tmp_path):
    scenes.write_raster(paths["dem"], scenes.elevation_on() * 1000.0)
    return {}, ["100 %", "Digital elevation model in m", "convert"]


def feet(paths, tmp_path):
    with rasterio.open(paths["dem"], "r+") as dataset:
        dataset.set_band_unit(1, "ft")
    return {}, ['"ft"', "Metres are needed", "0.3048"]


def nothing_but_nodata(paths, tmp_path):
    scenes.write_raster(paths["dem"], np.full((scenes.HEIGHT, scenes.WIDTH), -9999.0, np.float32), nodata=-9999.0)
    return {}, ["nothing but nodata"]


def no_common_pixel(paths, tmp_path):
    values = scenes.elevation_on()
    values[scenes.classes() != 0] = -9999.0
    scenes.write_raster(paths["dem"], values, nodata=-9999.0)
    return {}, ["no pixel has data in every input", "dem.tif", "nlcd.tif"]


def alpha_band(paths, tmp_path):
    values = np.stack([scenes.classes(), np.full((scenes.HEIGHT, scenes.WIDTH), 255, np.uint8)])
    scenes.write_raster(paths["dem"], values)
    with rasterio.open(paths["dem"], "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    inputs = {"dem": RasterSource(paths["dem"], 2), "nlcd": RasterSource(paths["nlcd"])}
    return {"inputs": inputs}, ["alpha"]


def colour_table(paths, tmp_path):
    scenes.write_raster(paths["dem"], scenes.classes())
    with rasterio.open(paths["dem"], "r+") as dataset:
        dataset.write_colormap(1, {41: (0, 99, 0, 255)})
    return {}, ["colour table", "measured values"]


def elevation_as_classes(paths, tmp_path):
    scenes.write_raster(paths["nlcd"], np.rint(scenes.elevation_on()).astype(np.int16))
    return {}, ['"nlcd"', "none of its codes", "41, 42, 52"]


def interpolated_classes(paths, tmp_path):
    scenes.write_raster(paths["nlcd"], scenes.classes().astype(np.float32) + 0.25, nodata=0.25)
    return {}, ['"nlcd"', "no class codes", "nearest"]


def truncated(paths, tmp_path):
    size = os.path.getsize(paths["dem"])
    with open(paths["dem"], "r+b") as file:
        file.truncate(size // 2)
    return {}, ["dem.tif", "damaged", "Copy or download"]


def zero_bytes(paths, tmp_path):
    open(paths["dem"], "wb").close()
    return {}, ["dem.tif", "zero bytes"]


def text_with_a_raster_name(paths, tmp_path):
    with open(paths["dem"], "w") as file:
        file.write("This is no raster.\n" * 50)
    return {}, ["dem.tif", "cannot open"]


def folder_in_place_of_a_file(paths, tmp_path):
    return {"inputs": {"dem": RasterSource(str(tmp_path)), "nlcd": RasterSource(paths["nlcd"])}}, ["it is a folder"]


def deleted(paths, tmp_path):
    os.remove(paths["dem"])
    return {}, ["dem.tif", "does not exist", "moved or deleted"]


def virtual_raster_without_its_source(paths, tmp_path):
    rasterio.shutil.copy(paths["dem"], tmp_path / "dem.vrt", driver="VRT")
    os.rename(paths["dem"], tmp_path / "elsewhere.tif")
    inputs = {"dem": RasterSource(str(tmp_path / "dem.vrt")), "nlcd": RasterSource(paths["nlcd"])}
    return {"inputs": inputs}, ["dem.vrt", "VRT"]


def web_service(paths, tmp_path):
    source = RasterSource("contextualWMSLegend=0&crs=EPSG:3338&format=image/png&layers=dem&url=http://localhost/wms")
    return {"inputs": {"dem": source, "nlcd": RasterSource(paths["nlcd"])}}, ["remote layer", "Save As"]


def memory_layer(paths, tmp_path):
    inputs = {"dem": RasterSource("memory?geometry=none"), "nlcd": RasterSource(paths["nlcd"])}
    return {"inputs": inputs}, ["memory", "exported"]


def target_in_degrees(paths, tmp_path):
    return {"crs": "EPSG:4326"}, ["EPSG:4326", "not projected", "EPSG:3338"]


def target_unknown(paths, tmp_path):
    return {"crs": "EPSG:999999"}, ["EPSG:999999", "PROJ"]


def other_resolution(paths, tmp_path):
    return {"resolution_m": 30.0}, ["30 m", "10 m"]


def negative_resolution(paths, tmp_path):
    return {"resolution_m": -10.0}, ["Resolution", "above 0"]


def threshold_of_1(paths, tmp_path):
    return {"threshold": 1.0}, ["Threshold", "between 0 and 1"]


def unknown_model(paths, tmp_path):
    return {"models": ("miso", "svm")}, ['"svm"', "miso, rf"]


def output_is_an_input(paths, tmp_path):
    return {"outputs": {"nsp_probability_miso": paths["dem"]}}, ["same file as input", '"dem"', "never overwrites"]


def output_is_the_area(paths, tmp_path):
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(*BOUNDS)])
    return {"aoi": aoi, "outputs": {"nsp_probability_miso": aoi}}, ["same file as an input"]


def two_outputs_in_one(paths, tmp_path):
    path = str(tmp_path / "x.tif")
    outputs = {"nsp_probability_miso": path, "nsp_probability_rf": path}
    return {"models": ("miso", "rf"), "outputs": outputs}, ["same file as output", "file of its own"]


def output_unknown(paths, tmp_path):
    return {"outputs": {"map": str(tmp_path / "x.tif")}}, ['"map"', "does not make it", "nsp_probability_miso"]


def output_with_another_ending(paths, tmp_path):
    return {"outputs": {"nsp_probability_miso": str(tmp_path / "x.jpg")}}, [".jpg", ".tif"]


BAD = [
    no_crs,
    local_crs,
    not_georeferenced,
    elsewhere,
    area_elsewhere,
    area_outside_alaska,
    area_between_pixel_centres,
    area_without_features,
    area_of_lines,
    area_without_crs,
    area_missing,
    area_is_a_raster,
    area_with_unknown_layer,
    input_missing,
    input_unknown,
    band_missing,
    same_file_twice,
    complex_numbers,
    nodata_undeclared,
    millimetres,
    feet,
    nothing_but_nodata,
    no_common_pixel,
    alpha_band,
    colour_table,
    elevation_as_classes,
    interpolated_classes,
    truncated,
    zero_bytes,
    text_with_a_raster_name,
    folder_in_place_of_a_file,
    deleted,
    virtual_raster_without_its_source,
    web_service,
    memory_layer,
    target_in_degrees,
    target_unknown,
    other_resolution,
    negative_resolution,
    threshold_of_1,
    unknown_model,
    output_is_an_input,
    output_is_the_area,
    two_outputs_in_one,
    output_unknown,
    output_with_another_ending,
]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning", "ignore:'crs' was not provided")
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_what_cannot_be_used_is_refused_with_name_finding_need_and_remedy(bad, model, tmp_path):
    paths = scenes.scene(tmp_path)
    changes, words = bad(paths, tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(MisoError) as caught:
        predict(job_of(model, tmp_path, paths, **changes), Silent())

    text = str(caught.value)
    assert isinstance(caught.value, InputError), text
    for word in words:
        assert word in text, text
    for problem in caught.value.problems:
        assert problem.what
        assert problem.found.endswith(".")
        assert problem.needed or problem.remedy
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_all_problems_are_reported_at_once(model, tmp_path):
    paths = scenes.scene(tmp_path)
    open(paths["dem"], "wb").close()
    scenes.write_raster(paths["nlcd"], scenes.classes(), crs=None)
    aoi = write_polygons(tmp_path / "area.gpkg", [])
    job = job_of(model, tmp_path, paths, aoi=aoi, outputs={"map": "x.tif"})
    with pytest.raises(InputError) as caught:
        predict(job, Silent())
    assert len(caught.value.problems) == 4


# Areas of interest that must work.


def expected_inside(geometry):
    x, y = scenes.centres(scenes.ALBERS, scenes.NATIVE, scenes.HEIGHT, scenes.WIDTH)
    return shapely.contains_xy(geometry, x, y)


def on_scene_grid(path):
    """The map, put back on the scene's grid; NaN outside the map."""
    with rasterio.open(path) as dataset:
        row = round((scenes.TOP - dataset.transform.f) / 10)
        column = round((dataset.transform.c - scenes.LEFT) / 10)
        values = dataset.read(1)
    full = np.full((scenes.HEIGHT, scenes.WIDTH), -9999.0, np.float32)
    full[row : row + values.shape[0], column : column + values.shape[1]] = values
    return full


def at(column, row):
    return scenes.LEFT + 10 * column, scenes.TOP - 10 * row


OUTER = shapely.Polygon([at(10.2, 5.1), at(120.7, 20.3), at(100.9, 80.4), at(15.3, 60.6)])
WITH_A_HOLE = OUTER.difference(shapely.Point(at(60.3, 35.4)).buffer(120))
TWO_PARTS = shapely.union_all(
    [shapely.box(*at(3.3, 30.7), *at(20.4, 8.8)), shapely.box(*at(90.2, 61.9), *at(110.6, 40.2))]
)
BOW_TIE = shapely.Polygon([at(20.3, 10.2), at(60.4, 50.7), at(60.4, 10.2), at(20.3, 50.7)])
ONE_PIXEL = shapely.box(*at(50.0, 31.0), *at(51.0, 30.0))


AREAS = {"polygon": OUTER, "hole": WITH_A_HOLE, "parts": TWO_PARTS, "one pixel": ONE_PIXEL}


def densely(geometry, crs):
    """The same lines in another CRS: cut finely before they are moved."""

    def move(points):
        return np.column_stack(transform_points("EPSG:3338", crs, points[:, 0].tolist(), points[:, 1].tolist()))

    return geometry if crs == "EPSG:3338" else shapely.transform(shapely.segmentize(geometry, 25.0), move)


@pytest.mark.parametrize("name", AREAS)
@pytest.mark.parametrize("crs", ["EPSG:3338", "EPSG:4326", "EPSG:32606"])
def test_exactly_the_pixels_whose_centre_lies_in_the_area_get_a_value(name, crs, model, tmp_path):
    paths = scenes.scene(tmp_path)
    geometry = AREAS[name]
    aoi = write_polygons(tmp_path / "area.gpkg", [densely(geometry, crs)], crs, kind="Unknown")
    result = predict(job_of(model, tmp_path, paths, aoi=aoi), Silent())
    got = on_scene_grid(result.outputs["nsp_probability_miso"])
    inside = expected_inside(geometry) & (scenes.classes() != 0)
    np.testing.assert_array_equal(got != -9999.0, inside)
    np.testing.assert_allclose(got[inside] * 1000, scenes.elevation_on()[inside], atol=EXACT)
    pixels = result.summary["pixels"]
    assert pixels["valid"] == inside.sum()
    assert sum(pixels.values()) == result.summary["grid"]["height"] * result.summary["grid"]["width"]


def test_an_invalid_polygon_is_repaired_with_a_note(model, tmp_path):
    paths = scenes.scene(tmp_path)
    aoi = write_polygons(tmp_path / "area.geojson", [BOW_TIE])
    notes = Notes()
    result = predict(job_of(model, tmp_path, paths, aoi=aoi), notes)
    got = on_scene_grid(result.outputs["nsp_probability_miso"]) != -9999.0
    np.testing.assert_array_equal(got, expected_inside(shapely.make_valid(BOW_TIE)))
    assert any("Self-intersection" in text for text in notes.texts)


def test_an_input_that_covers_half_of_the_area_leaves_the_other_half_empty(model, tmp_path):
    paths = scenes.scene(tmp_path)
    scenes.write_elevation(paths["dem"], width=70)
    aoi = write_polygons(tmp_path / "area.gpkg", [shapely.box(*BOUNDS)])
    notes = Notes()
    result = predict(job_of(model, tmp_path, paths, aoi=aoi), notes)
    valid = scenes.classes() != 0
    valid[:, 70:] = False
    np.testing.assert_array_equal(scenes.read(result.outputs["nsp_probability_miso"]) != -9999.0, valid)
    assert any("lack data in some input" in text for text in notes.texts)


def test_a_constant_elevation_is_predicted_and_pointed_out(model, tmp_path):
    paths = scenes.scene(tmp_path)
    scenes.write_raster(paths["dem"], np.full((scenes.HEIGHT, scenes.WIDTH), 250.0, np.float32))
    notes = Notes()
    result = predict(job_of(model, tmp_path, paths), notes)
    got = scenes.read(result.outputs["nsp_probability_miso"])
    np.testing.assert_allclose(got[got != -9999.0], 0.25, atol=1e-6)
    assert any("every value" in text and "250" in text for text in notes.texts)


def test_unseen_classes_are_counted_and_reported(model, tmp_path):
    paths = scenes.scene(tmp_path)
    values = scenes.classes()
    values[10:14, 10:15] = 95
    values[60:62, 3:4] = 31
    scenes.write_raster(paths["nlcd"], values, nodata=0)
    notes = Notes()
    result = predict(job_of(model, tmp_path, paths), notes)
    assert result.summary["unseen_classes"] == {"nlcd": {"31": 2, "95": 20}}
    assert any("31 (2 pixels), 95 (20 pixels)" in text for text in notes.texts)
    assert (scenes.read(result.outputs["nsp_probability_miso"])[10:14, 10:15] != -9999.0).all()


def test_the_band_that_is_named_is_the_band_that_is_read(model, tmp_path):
    paths = scenes.scene(tmp_path)
    plane = scenes.elevation_on()
    scenes.write_raster(tmp_path / "many.tif", np.stack([plane * 0 + 5, plane, plane * 0 + 9]), nodata=-9999.0)
    result = predict(job_of(model, tmp_path, {**paths, "dem": f"{tmp_path / 'many.tif'}#2"}), Silent())
    got = scenes.read(result.outputs["nsp_probability_miso"])
    valid = got != -9999.0
    np.testing.assert_allclose(got[valid] * 1000, plane[valid], atol=EXACT)


@pytest.mark.parametrize("name", ["with blanks and (brackets)", "снег и лёд ❄", "a&b<c>'d\"", "x" * 120])
def test_any_path_that_the_system_allows_works(name, model, tmp_path):
    folder = tmp_path / name
    paths = scenes.scene(folder)
    result = predict(job_of(model, folder, paths), Silent())
    assert (scenes.read(result.outputs["nsp_probability_miso"]) != -9999.0).any()
