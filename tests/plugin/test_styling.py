"""Styles and thresholds: what the colours and the hectares say."""

import numpy as np
import pytest
from osgeo import gdal
from qgis.core import QgsRasterLayer
from qgis.PyQt.QtGui import QColor

from miso_qgis.application import styling
from miso_qgis.application.thresholds import count_area, describe_cost, named_thresholds
from miso_qgis.engine.manifest import TaskSpec


@pytest.fixture
def raster(tmp_path):
    """A function that writes an array as a raster of 10 m pixels and returns its path."""

    def write(array, data_type, nodata, name="r"):
        path = str(tmp_path / f"{name}.tif")
        dataset = gdal.GetDriverByName("GTiff").Create(path, array.shape[1], array.shape[0], 1, data_type)
        dataset.SetGeoTransform((0, 10, 0, 0, 0, -10))
        dataset.GetRasterBand(1).WriteArray(array)
        dataset.GetRasterBand(1).SetNoDataValue(nodata)
        dataset = None
        return path

    return write


ORDERS = ("Andisols", "Entisols", "Gelisols", "Histosols", "Inceptisols", "Mollisols", "Spodosols")
STYLES = {
    **dict.fromkeys((styling.PROBABILITY, styling.DIFFERENCE, styling.ORDER_PROBABILITY), gdal.GDT_Float32),
    **dict.fromkeys((styling.PERCENT, styling.DISAGREEMENT, styling.ORDER_PERCENT, styling.DOMINANT), gdal.GDT_Byte),
}


def seven_bands(tmp_path, data_type, names=ORDERS):
    path = str(tmp_path / "seven.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, 3, 3, 7, data_type)
    for number, name in enumerate(names, 1):
        dataset.GetRasterBand(number).SetDescription(name)
    dataset = None
    return path


@pytest.mark.parametrize("style", STYLES)
def test_the_shipped_style_files_say_what_the_code_says(qgis_app, tmp_path, style):
    """Change the colours in styling.py, then run development/styles.py."""
    path = seven_bands(tmp_path, STYLES[style])
    by_code, by_file = QgsRasterLayer(path, "code"), QgsRasterLayer(path, "file")
    styling.apply_style(by_code, style)
    _, loaded = by_file.loadNamedStyle(str(styling.style_file(style)))
    assert loaded
    assert look(by_file) == look(by_code)
    band = 3 if style in (styling.ORDER_PROBABILITY, styling.ORDER_PERCENT) else 1
    assert by_code.renderer().usesBands() == by_file.renderer().usesBands() == [band]


def test_every_style_file_belongs_to_a_style(qgis_app):
    files = {path.name for path in styling.STYLES_FOLDER.glob("*.qml")}
    assert files == {styling.style_file(style).name for style in STYLES}


def test_gelisols_are_found_by_their_name_wherever_their_band_is(qgis_app, tmp_path):
    layer = QgsRasterLayer(seven_bands(tmp_path, gdal.GDT_Float32, ORDERS[::-1]), "x")
    assert styling.order_renderer(layer).usesBands() == [5]
    nameless = QgsRasterLayer(seven_bands(tmp_path, gdal.GDT_Float32, ("",) * 7), "x")
    assert styling.order_renderer(nameless).usesBands() == [1]


def test_orders_have_the_codes_of_the_contract_and_the_colours_of_soil_maps(qgis_app, raster):
    layer = QgsRasterLayer(raster(np.zeros((3, 3)), gdal.GDT_Byte, 255), "x")
    classes = {item.value: (item.label, item.color.getRgb()[:3]) for item in styling.dominant_renderer(layer).classes()}
    assert {code: label for code, (label, _) in classes.items()} == dict(enumerate(ORDERS, 1))
    # NRCS, map of global soil regions.
    assert classes[1][1] == (255, 0, 197)
    assert classes[3][1] == (102, 119, 205)
    assert classes[7][1] == (194, 158, 215)


def look(layer):
    renderer = layer.renderer()
    if renderer.type() == "paletted":
        return [(item.value, item.color.name(), item.label) for item in renderer.classes()]
    items = renderer.shader().rasterShaderFunction().colorRampItemList()
    return [(round(item.value, 6), item.color.name(), item.label) for item in items]


def test_the_ramp_gets_darker_evenly_so_that_it_reads_without_colour(qgis_app, raster):
    layer = QgsRasterLayer(raster(np.zeros((3, 3)), gdal.GDT_Float32, -9999), "x")
    renderer = styling.probability_renderer(layer)  # owns the function
    function = renderer.shader().rasterShaderFunction()
    lightness = [luminance(*function.shade(value)[1:4]) for value in np.linspace(0, 1, 21)]
    steps = -np.diff(lightness)
    assert (steps > 1).all(), "every step of 0.05 must be visible"
    assert steps.max() < 3 * steps.min()


def luminance(red, green, blue):
    """CIE lightness L*, 0 to 100 (IEC 61966-2-1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array([red, green, blue]) / 255]
    y = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * np.cbrt(y) - 16


def test_classes_have_the_codes_of_the_contract(qgis_app, raster):
    layer = QgsRasterLayer(raster(np.zeros((3, 3)), gdal.GDT_Byte, 255), "x")
    classes = {item.value: item.label for item in styling.disagreement_renderer(layer).classes()}
    assert classes == {0: "Neither", 1: "RF only", 2: "MISO only", 3: "Both"}


def test_the_difference_is_neutral_at_zero(qgis_app, raster):
    layer = QgsRasterLayer(raster(np.zeros((3, 3)), gdal.GDT_Float32, -9999), "x")
    renderer = styling.difference_renderer(layer)
    function = renderer.shader().rasterShaderFunction()
    assert QColor(*function.shade(0.0)[1:4]).name() == "#f7f7f7"
    assert function.shade(-0.5)[1] > function.shade(-0.5)[3]  # RF higher: orange
    assert function.shade(0.5)[1] < function.shade(0.5)[3]  # MISO higher: violet


def test_hectares_above_a_threshold_are_counted_exactly(qgis_app, raster):
    values = np.array([[0.0, 0.1, 0.3, 0.5, 0.5], [0.7, 0.999, 1.0, -9999, -9999]], "float32")
    above = count_area(raster(values, gdal.GDT_Float32, -9999), False)
    assert above.is_exact
    assert above.valid_ha == pytest.approx(0.08)
    # A pixel of 100 m2 is 0.01 ha; a probability equal to the threshold counts.
    for threshold, count in ((0.3, 6), (0.5, 5), (0.51, 3), (1.0, 1), (0.01, 7)):
        assert above.hectares(threshold) == pytest.approx(0.01 * count), threshold


def test_hectares_of_percent(qgis_app, raster):
    values = np.array([[0, 49, 50, 51], [100, 255, 255, 1]], "uint8")
    above = count_area(raster(values, gdal.GDT_Byte, 255), True)
    assert above.valid_ha == pytest.approx(0.06)
    assert above.hectares(0.5) == pytest.approx(0.03)
    assert above.hectares(0.51) == pytest.approx(0.02)


def test_a_raster_that_is_gone_is_an_error(qgis_app, tmp_path):
    with pytest.raises(OSError, match="cannot be opened"):
        count_area(str(tmp_path / "none.tif"), False)


def test_the_cost_of_a_threshold_is_told_from_the_models_own_curves():
    curve = {"threshold": [0.2, 0.4, 0.6], "recall": [0.9, 0.8, 0.5], "precision": [0.5, 0.6, 0.9]}
    task = TaskSpec("t", ("nsp",), "d", thresholds={"miso": {"equal_recall": 0.4}}, curves={"miso": {"1 km": curve}})
    assert describe_cost(task, "miso", 0.3) == (
        "In validation, 1 km: finds 80% of the presences; 60% of its calls are right."
    )
    assert describe_cost(task, "rf", 0.3) == ""
    assert named_thresholds(task, "miso") == {"0.5": 0.5, "equal recall": 0.4}
    assert named_thresholds(task, "rf") == {"0.5": 0.5}
