"""Recognising layers by the words of their names."""

import pytest
from osgeo import gdal
from qgis.core import QgsCoordinateReferenceSystem, QgsRasterLayer, QgsVectorLayer

from miso_qgis.application.inputs import (
    RasterBand,
    bands_of,
    layer_problem,
    likeness,
    match_bands,
    match_inputs,
    words_of,
)
from miso_qgis.engine.manifest import InputSpec
from miso_qgis.engine.messages import RasterSource

DEM = InputSpec("continuous", "Digital elevation model", "m", aliases=("dem", "dtm", "elevation", "height"))
NLCD = InputSpec("classes", "NLCD land cover", aliases=("nlcd", "land cover", "landcover"))
INPUTS = {"dem": DEM, "nlcd": NLCD}


def band(layer, path="/x.tif", number=1, *names):
    return RasterBand(layer, RasterSource(path, number), (layer, *names))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("LandCover_2016 (AK)", ("land", "cover", "2016", "ak")),
        ("NLCD2019", ("nlcd", "2019")),
        ("my-DEM.30m", ("my", "dem", "30", "m")),
        ("Höhe über NN", ("höhe", "über", "nn")),
        ("", ()),
    ],
)
def test_names_are_split_into_words(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("dem", 3),
        ("DEM", 3),
        ("elevation", 3),
        ("dem_30m", 2),
        ("Elevation 2013 ft", 1),
        ("demography", 0),
        ("slope", 0),
    ],
)
def test_the_closer_the_name_the_better(name, score):
    assert likeness("dem", DEM, band(name)) == score


@pytest.mark.parametrize("name", ["nlcd_2016_fairbanks", "LandCover", "land_cover", "land-cover 2016", "AK landcover"])
def test_words_written_together_or_apart_are_the_same(name):
    assert likeness("nlcd", NLCD, band(name)) > 0


def test_the_order_of_layers_does_not_matter():
    bands = [band("nlcd 2016", "/n.tif"), band("dem", "/d.tif"), band("roads", "/r.tif")]
    for order in (bands, bands[::-1]):
        found, problems = match_bands(INPUTS, order)
        assert {name: item.source.path for name, item in found.items()} == {"dem": "/d.tif", "nlcd": "/n.tif"}
        assert problems == {}


def test_a_better_name_wins_and_equal_names_are_a_problem():
    found, problems = match_bands({"dem": DEM}, [band("dem", "/1.tif"), band("dem old", "/2.tif")])
    assert found["dem"].source.path == "/1.tif"
    found, problems = match_bands({"dem": DEM}, [band("dem a", "/1.tif"), band("dem b", "/2.tif")])
    assert found == {}
    text = str(problems["dem"])
    assert all(
        part in text for part in ('"dem a" band 1', '"dem b" band 1', "Exactly one", 'rename the right one to "dem"')
    )


def test_nothing_is_matched_by_elimination():
    found, problems = match_bands(INPUTS, [band("dem"), band("OUTPUT")])
    assert "nlcd" not in found
    text = str(problems["nlcd"])
    assert all(part in text for part in ("NLCD land cover", '"OUTPUT"', "nlcd, land cover, landcover"))


def test_a_band_is_found_by_its_description(tmp_path, qgis_app):
    path = str(tmp_path / "stack.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, 4, 4, 2)
    dataset.GetRasterBand(1).SetDescription("something")
    dataset.GetRasterBand(2).SetDescription("nlcd")
    dataset = None
    bands = bands_of(QgsRasterLayer(path, "my stack"))
    found, _ = match_bands({"nlcd": NLCD}, bands)
    assert found["nlcd"].source == RasterSource(path, 2)


RED = InputSpec("continuous", "Sentinel-2 red (B04)", aliases=("b04", "red"))
EDGES = {
    f"red_edge_{n}": InputSpec("continuous", f"Sentinel-2 red edge {n}", aliases=(f"b0{n + 4}", f"rededge{n}"))
    for n in (1, 2)
}


@pytest.mark.parametrize("style", ["{}", "scene_{}", "scene {} 2021", "sentinel2_{}_10m"])
def test_a_name_that_holds_a_longer_alias_belongs_to_that_input(style):
    inputs = {"red": RED, **EDGES}
    bands = [band(style.format(name), f"/{name}.tif") for name in inputs]
    found, problems = match_bands(inputs, bands)
    assert problems == {}
    assert {name: item.source.path for name, item in found.items()} == {name: f"/{name}.tif" for name in inputs}
    # Without the red band, neither of the red edges stands in for it.
    found, problems = match_bands(inputs, bands[1:])
    assert set(found) == set(EDGES)
    assert "no layer was recognised" in str(problems["red"])


def test_no_band_serves_two_inputs():
    green = InputSpec("continuous", "Sentinel-2 green (B03)", aliases=("b03",))
    inputs = {"red": RED, "green": green}
    stack = [band("red green composite", "/s.tif"), RasterBand("red green composite", RasterSource("/s.tif", 2), ())]
    found, problems = match_bands(inputs, stack)
    assert found == {}
    assert '"red green composite" band 1, fits green as well' in str(problems["red"])
    assert "Describe the bands" in str(problems["green"])
    # A band that is named for one of them is that one's, whatever the file is called.
    found, problems = match_bands(inputs, [band("green composite", "/s.tif", 1, "red")])
    assert set(found) == {"red"}
    assert "fits red as well" in str(problems["green"])


def test_among_bands_that_fit_alike_more_words_of_the_input_win():
    inputs = {
        "red": InputSpec("continuous", "Red", aliases=("b04",)),
        "red_edge_1": InputSpec("continuous", "Red edge", aliases=("b05",)),
    }
    names = ("B05, red edge", "B04, red")
    bands = [RasterBand("scene", RasterSource("scene.tif", n), (name,)) for n, name in enumerate(names, start=1)]
    found, problems = match_bands(inputs, bands)
    assert {name: band.source.band for name, band in found.items()} == {"red": 2, "red_edge_1": 1}
    assert not problems


def test_bands_without_description_are_named_as_the_reason():
    stack = [band("composite", "/s.tif"), RasterBand("composite", RasterSource("/s.tif", 2), ())]
    _, problems = match_bands({"red": RED}, stack)
    assert 'the layers are: "composite" (2 bands, 1 of them without a description)' in str(problems["red"])
    assert "Describe the bands in the file, or save each" in str(problems["red"])


def test_further_bands_of_the_file_of_the_dem_can_be_other_inputs(tmp_path, qgis_app):
    path = str(tmp_path / "all.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, 4, 4, 2)
    dataset.GetRasterBand(2).SetDescription("nlcd")
    dataset = None
    layer = QgsRasterLayer(path, "all")
    match = match_inputs(INPUTS, layer, [layer])
    assert match.problems == []
    assert match.sources == {"dem": RasterSource(path, 1), "nlcd": RasterSource(path, 2)}
    assert match.unused == []


def test_the_chosen_dem_needs_no_name_and_is_not_taken_twice(valley, qgis_app):
    dem = QgsRasterLayer(str(valley / "dem.tif"), "whatever")
    nlcd = QgsRasterLayer(str(valley / "nlcd.tif"), "nlcd")
    match = match_inputs(INPUTS, dem, [nlcd, dem])
    assert match.problems == []
    assert match.layers == {"dem": "whatever", "nlcd": "nlcd"}
    assert match.unused == []


def test_every_layer_without_a_file_is_refused_with_a_remedy(qgis_app, valley, tmp_path):
    gone = tmp_path / "gone.tif"
    gone.write_bytes((valley / "dem.tif").read_bytes())
    deleted = QgsRasterLayer(str(gone), "gone")
    gone.unlink()
    other_crs = QgsRasterLayer(str(valley / "dem.tif"), "wrong crs")
    other_crs.setCrs(QgsCoordinateReferenceSystem("EPSG:26906"))
    cases = {
        "removed from the project": None,
        "cannot be opened": deleted,
        "is not a raster": QgsVectorLayer("Point?crs=EPSG:3338", "points", "memory"),
        "(wms)": QgsRasterLayer("type=xyz&url=https://example.org/{x}/{y}/{z}.png", "tiles", "wms"),
        "the file says EPSG:3338": other_crs,
    }
    for words, layer in cases.items():
        problem = layer_problem(layer)
        assert problem is not None, words
        assert words in str(problem)
        assert problem.remedy
    assert layer_problem(QgsRasterLayer(str(valley / "dem.tif"), "good")) is None


def test_a_raster_in_memory_is_refused(qgis_app):
    gdal.FileFromMemBuffer("/vsimem/dem.tif", b"")
    dataset = gdal.GetDriverByName("GTiff").Create("/vsimem/dem.tif", 4, 4, 1)
    dataset.SetGeoTransform((0, 1, 0, 4, 0, -1))
    dataset = None
    problem = layer_problem(QgsRasterLayer("/vsimem/dem.tif", "in memory"))
    gdal.Unlink("/vsimem/dem.tif")
    assert "only in QGIS's memory" in str(problem)
