"""A figure of a prediction: MISO, Random Forest and their disagreement side by side over shaded relief.

Drawn by QGIS itself, through a print layout with the plugin's styles, so that the figure shows what a user sees.
Positions and sizes are millimetres on the page. Belongs to the main thread: a layout is made of graphics items.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from qgis.core import (
    Qgis,
    QgsColorRampLegendNode,
    QgsColorRampLegendNodeSettings,
    QgsHillshadeRenderer,
    QgsLayerTree,
    QgsLayoutExporter,
    QgsLayoutItemLabel,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutItemPicture,
    QgsLayoutItemScaleBar,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsLegendRenderer,
    QgsLegendStyle,
    QgsMapLayerLegendUtils,
    QgsPrintLayout,
    QgsProject,
    QgsRasterBandStats,
    QgsRasterDataProvider,
    QgsRasterLayer,
    QgsRasterSymbolLegendNode,
    QgsRectangle,
    QgsUnitTypes,
)
from qgis.PyQt.QtCore import QSize, QSizeF, Qt
from qgis.PyQt.QtGui import QColor, QFont, QPainter

from ..engine.errors import InputError, OutputError
from .folders import PLUGIN_FOLDER
from .styling import DISAGREEMENT, PERCENT, PROBABILITY, apply_style

PAGE_WIDTH_MM = 300.0
MARGIN_MM, GAP_MM = 8.0, 5.0
COLUMN_MM = (PAGE_WIDTH_MM - 2 * MARGIN_MM - 2 * GAP_MM) / 3
HEADER_MM, TITLE_MM, LEGEND_MM, FOOTER_MM = 13.0, 7.0, 21.0, 8.0
MAP_HEIGHT_RANGE_MM = (50.0, 150.0)
PICTURE_WIDTH_PX = 3000


@dataclass(frozen=True)
class FigureInputs:
    """What a figure shows.

    Attributes:
        miso: Probability raster.
        rf: Probability raster.
        disagreement: Class raster.
        dem: Elevation raster for the relief.
        heading: Line above the maps.
        data: Line below the maps; names the data, or says that they are simulated.
    """

    miso: Path
    rf: Path
    disagreement: Path
    dem: Path
    heading: str
    data: str


def draw_figure(inputs: FigureInputs, output: Path) -> None:
    """Write the figure as PNG. It appears under its name only when it is complete.

    Raises:
        InputError: If a raster cannot be read, or holds no data.
        OutputError: If the picture cannot be written.
    """
    # A project of its own: the user's layers, CRS and layouts are not touched.
    project = QgsProject()
    relief = _relief(inputs.dem)
    maps = [
        (_result(inputs.miso, _probability_style(inputs.miso)), "MISO"),
        (_result(inputs.rf, _probability_style(inputs.rf)), "Random Forest"),
        (_result(inputs.disagreement, DISAGREEMENT), "Where they agree and disagree"),
    ]
    project.setCrs(maps[0][0].crs())
    for layer in (relief, *(layer for layer, _ in maps)):
        project.addMapLayer(layer)
    extent = maps[0][0].extent()
    extent.scale(1.03)
    layout, height = _new_layout(project, extent)
    _label(layout, inputs.heading, 15, True, (MARGIN_MM, 4, PAGE_WIDTH_MM - 2 * MARGIN_MM, HEADER_MM - 4))
    items = []
    for number, (layer, title) in enumerate(maps):
        left = MARGIN_MM + number * (COLUMN_MM + GAP_MM)
        _label(layout, title, 11, True, (left, HEADER_MM, COLUMN_MM, TITLE_MM))
        items.append(_map(layout, [layer, relief], extent, (left, HEADER_MM + TITLE_MM, COLUMN_MM, height)))
    below = HEADER_MM + TITLE_MM + height + 2
    _legend(layout, maps[0][0], "Probability of permafrost within 1 m", (MARGIN_MM, below))
    _legend(layout, maps[2][0], "Permafrost present according to", (MARGIN_MM + 2 * (COLUMN_MM + GAP_MM), below))
    _scale_bar(layout, items[0], extent, (MARGIN_MM + COLUMN_MM + GAP_MM, below + 2))
    _north_arrow(layout, items[0], (MARGIN_MM + COLUMN_MM + GAP_MM + 62, below))
    _label(layout, inputs.data, 9, False, (MARGIN_MM, below + LEGEND_MM, PAGE_WIDTH_MM - 2 * MARGIN_MM, FOOTER_MM))
    _export(layout, output)


def _open(path: Path) -> QgsRasterLayer:
    layer = QgsRasterLayer(str(path), path.stem)
    if not layer.isValid():
        raise InputError(
            f'Raster "{path}"', "it cannot be opened.", "", "Run the prediction again, or choose another file."
        )
    return layer


def _probability_style(path: Path) -> str:
    layer = _open(path)
    return PERCENT if layer.dataProvider().dataType(1) == Qgis.DataType.Byte else PROBABILITY


def _result(path: Path, style: str) -> QgsRasterLayer:
    layer = _open(path)
    apply_style(layer, style)
    layer.setBlendMode(QPainter.CompositionMode.CompositionMode_Multiply)  # lets the relief through
    return layer


def _relief(path: Path) -> QgsRasterLayer:
    layer = _open(path)
    statistics = layer.dataProvider().bandStatistics(1, QgsRasterBandStats.Stats.StdDev, layer.extent(), 100_000)
    renderer = QgsHillshadeRenderer(layer.dataProvider(), 1, 315.0, 45.0)
    renderer.setMultiDirectional(False)
    # Low hills are exaggerated, high mountains are not: valleys are to be seen, not to dominate.
    renderer.setZFactor(min(max(150.0 / max(statistics.stdDev, 1.0), 1.0), 3.0))
    layer.setRenderer(renderer)
    layer.brightnessFilter().setBrightness(70)
    # Shading of pixels that were merely repeated has stripes; it needs a surface.
    layer.dataProvider().enableProviderResampling(True)
    layer.dataProvider().setZoomedInResamplingMethod(QgsRasterDataProvider.ResamplingMethod.Cubic)
    layer.dataProvider().setZoomedOutResamplingMethod(QgsRasterDataProvider.ResamplingMethod.Bilinear)
    layer.setResamplingStage(Qgis.RasterResamplingStage.Provider)
    return layer


def _new_layout(project: QgsProject, extent: QgsRectangle) -> tuple[QgsPrintLayout, float]:
    if extent.isEmpty():
        raise InputError("The result", "it covers no area.", "", "Run the prediction again.")
    low, high = MAP_HEIGHT_RANGE_MM
    height = min(max(COLUMN_MM * extent.height() / extent.width(), low), high)
    layout = QgsPrintLayout(project)
    layout.initializeDefaults()
    page = layout.pageCollection().page(0)
    page.setPageSize(_size(PAGE_WIDTH_MM, HEADER_MM + TITLE_MM + height + 2 + LEGEND_MM + FOOTER_MM))
    return layout, height


def _size(width: float, height: float) -> QgsLayoutSize:
    return QgsLayoutSize(width, height, QgsUnitTypes.LayoutUnit.LayoutMillimeters)


def _place(item: object, box: tuple[float, float, float, float]) -> None:
    left, top, width, height = box
    item.attemptMove(QgsLayoutPoint(left, top, QgsUnitTypes.LayoutUnit.LayoutMillimeters))
    item.attemptResize(_size(width, height))


def _font(points: float, bold: bool = False) -> QFont:
    font = QFont()
    font.setPointSizeF(points)
    font.setBold(bold)
    return font


def _label(
    layout: QgsPrintLayout, text: str, points: float, bold: bool, box: tuple[float, float, float, float]
) -> None:
    item = QgsLayoutItemLabel(layout)
    item.setText(text)
    item.setFont(_font(points, bold))
    item.setVAlign(Qt.AlignmentFlag.AlignVCenter)
    layout.addLayoutItem(item)
    _place(item, box)


def _map(
    layout: QgsPrintLayout, layers: List[QgsRasterLayer], extent: QgsRectangle, box: tuple[float, float, float, float]
) -> QgsLayoutItemMap:
    item = QgsLayoutItemMap(layout)
    item.setCrs(layers[0].crs())
    item.setLayers(layers)
    item.setFrameEnabled(True)
    item.setFrameStrokeColor(QColor("#888888"))
    layout.addLayoutItem(item)
    _place(item, box)
    item.setExtent(extent)  # changes the height; zoomToExtent cannot start from a map that has no extent yet
    _place(item, box)
    item.zoomToExtent(extent)
    return item


def _legend(layout: QgsPrintLayout, layer: QgsRasterLayer, title: str, corner: tuple[float, float]) -> None:
    _label(layout, title, 9, False, (corner[0], corner[1], COLUMN_MM, 6))
    item = QgsLayoutItemLegend(layout)
    layout.addLayoutItem(item)
    item.setAutoUpdateModel(False)
    tree = QgsLayerTree()
    node = tree.addLayer(layer)
    QgsLegendRenderer.setNodeLegendStyle(node, QgsLegendStyle.Style.Hidden)
    function = getattr(layer.renderer(), "shader", lambda: None)()
    if function is not None:
        settings = QgsColorRampLegendNodeSettings()
        settings.setOrientation(Qt.Orientation.Horizontal)
        function.rasterShaderFunction().setLegendSettings(settings)
    item.model().setRootGroup(tree)
    # The first node repeats the band's description; the heading says it in plainer words.
    kinds = (QgsColorRampLegendNode, QgsRasterSymbolLegendNode)
    order = [i for i, legend in enumerate(item.model().layerLegendNodes(node)) if isinstance(legend, kinds)]
    for index in order if function is not None else ():
        QgsMapLayerLegendUtils.setLegendNodeSymbolSize(node, index, QSizeF(70, 4))
    QgsMapLayerLegendUtils.setLegendNodeOrder(node, order)
    item.model().refreshLayerLegend(node)
    item.setColumnCount(1 if function is not None else 2)
    item.setSplitLayer(True)
    item.setStyleFont(QgsLegendStyle.Style.SymbolLabel, _font(8.5))
    item.setBoxSpace(0)
    item.setBackgroundEnabled(False)
    item.attemptMove(QgsLayoutPoint(corner[0], corner[1] + 6, QgsUnitTypes.LayoutUnit.LayoutMillimeters))
    item.adjustBoxSize()
    layout.refresh()
    tree.setParent(item)  # the legend draws from it until the layout is gone


def _scale_bar(
    layout: QgsPrintLayout, linked: QgsLayoutItemMap, extent: QgsRectangle, corner: tuple[float, float]
) -> None:
    item = QgsLayoutItemScaleBar(layout)
    item.setStyle("Single Box")
    item.setLinkedMap(linked)
    item.setUnits(QgsUnitTypes.DistanceUnit.DistanceKilometers)
    item.setUnitLabel("km")
    item.setNumberOfSegments(2)
    item.setNumberOfSegmentsLeft(0)
    # About a third of the map's width, in round numbers.
    wanted_km = extent.width() / 1000 / 6
    steps = [m * 10**e for e in range(-2, 4) for m in (1, 2, 5)]
    item.setUnitsPerSegment(min(steps, key=lambda step: abs(step - wanted_km)))
    item.setHeight(2.0)
    text = item.textFormat()
    text.setSize(9)
    item.setTextFormat(text)
    layout.addLayoutItem(item)
    item.attemptMove(QgsLayoutPoint(corner[0], corner[1], QgsUnitTypes.LayoutUnit.LayoutMillimeters))
    item.update()


def _north_arrow(layout: QgsPrintLayout, linked: QgsLayoutItemMap, corner: tuple[float, float]) -> None:
    item = QgsLayoutItemPicture(layout)
    item.setPicturePath(str(PLUGIN_FOLDER / "resources" / "north_arrow.svg"))
    item.setLinkedMap(linked)
    # In Alaska Albers, north is up only along 154 degrees west.
    item.setNorthMode(QgsLayoutItemPicture.NorthMode.TrueNorth)
    layout.addLayoutItem(item)
    _place(item, (corner[0], corner[1], 14, 14))
    item.refreshPicture()


def _export(layout: QgsPrintLayout, output: Path) -> None:
    part = output.with_name(f".{output.stem}.part.png")
    problem: Optional[str] = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Not exportToImage: that wants to georeference the picture, and GDAL complains on the terminal.
        image = QgsLayoutExporter(layout).renderPageToImage(0, QSize(), PICTURE_WIDTH_PX / (PAGE_WIDTH_MM / 25.4))
        if image.save(str(part), "PNG"):
            os.replace(part, output)
        else:
            problem = "QGIS could not write the picture"
    except OSError as error:
        problem = error.strerror or str(error)
    finally:
        part.unlink(missing_ok=True)
    if problem:
        raise OutputError(
            f'Picture "{output}"',
            f"it cannot be written ({problem}).",
            "A folder that you may write to is needed.",
            "Choose another file.",
        )
