"""Writes the style files of the plugin from its code, so that the colours are stated once.

Run it with the Python of QGIS, with the assembled plugin's parent folder on the path, after changing
``application/styling.py``::

    QT_QPA_PLATFORM=offscreen PYTHONPATH=build python -m development.styles miso_qgis/resources/styles
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from osgeo import gdal
from qgis.core import QgsApplication, QgsMapLayer, QgsRasterLayer


def write_styles(folder: Path) -> None:
    """Write one style file per kind of result. Only the drawing is written, no paths and no metadata."""
    from miso_qgis.application import styling
    from miso_qgis.engine.classes import SOIL_ORDER_COLOURS

    kinds = {
        styling.PROBABILITY: gdal.GDT_Float32,
        styling.PERCENT: gdal.GDT_Byte,
        styling.DISAGREEMENT: gdal.GDT_Byte,
        styling.DIFFERENCE: gdal.GDT_Float32,
        styling.ORDER_PROBABILITY: gdal.GDT_Float32,
        styling.ORDER_PERCENT: gdal.GDT_Byte,
        styling.DOMINANT: gdal.GDT_Byte,
    }
    categories = QgsMapLayer.StyleCategory.Symbology | QgsMapLayer.StyleCategory.Rendering
    with tempfile.TemporaryDirectory() as scratch:
        for style, data_type in kinds.items():
            raster = str(Path(scratch) / f"{style}.tif")
            # Seven bands, described by order, for the styles that pick one of them; the others draw the first.
            made = gdal.GetDriverByName("GTiff").Create(raster, 4, 4, len(SOIL_ORDER_COLOURS), data_type)
            made.SetGeoTransform((0, 10, 0, 40, 0, -10))
            for number, name in enumerate(SOIL_ORDER_COLOURS, 1):
                made.GetRasterBand(number).SetDescription(name)
            made = None
            layer = QgsRasterLayer(raster, style)
            styling.apply_style(layer, style)
            _, saved = layer.saveNamedStyle(str(folder / styling.style_file(style).name), categories)
            if not saved:
                raise OSError(f"the style {style} cannot be written into {folder}")


if __name__ == "__main__":
    application = QgsApplication([], False)
    application.initQgis()
    write_styles(Path(sys.argv[1]))
    application.exitQgis()
