"""How results look: colours, renderers, style files, names and groups of layers.

Colours are safe for colour-blind readers and the same in the panel, in the style files and in the figure. Probability
has a fixed range, so that two maps can be compared by eye; lightness falls from pale to dark over it. The classes take
their colours from Okabe and Ito (2008), the difference from ColorBrewer's PuOr, with its middle at 0. Soil orders have
the colours that soil maps give them (``engine/classes.py``), and those are not all apart for colour-blind readers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List, Optional, Tuple

from qgis.core import (
    QgsColorRampLegendNodeSettings,
    QgsColorRampShader,
    QgsLayerTreeGroup,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProject,
    QgsRasterLayer,
    QgsRasterShader,
    QgsSingleBandPseudoColorRenderer,
)
from qgis.PyQt.QtGui import QColor

from ..engine.classes import SOIL_ORDER_COLOURS, class_codes
from .folders import STYLES_FOLDER

PROBABILITY, PERCENT, DISAGREEMENT, DIFFERENCE = "probability", "percent", "disagreement", "difference"
ORDER_PROBABILITY, ORDER_PERCENT, DOMINANT = "soil_order_probability", "soil_order_percent", "soil_order_dominant"
# Of the seven probabilities, the one that is drawn first: soils with permafrost.
SHOWN_ORDER = "Gelisols"

# Position in the range, colour: pale sand (thawed) to dark blue (frozen); CIELAB lightness 96, 86, 70, 51, 33, 17.
_PROBABILITY_RAMP = (
    (0.0, "#f7f3e8"),
    (0.2, "#d5dcd6"),
    (0.4, "#9fb9c9"),
    (0.6, "#5f8cb5"),
    (0.8, "#2d5b8e"),
    (1.0, "#122b4d"),
)
_BELOW_THRESHOLD = ("#faf8f2", "#ece5d3")
_ABOVE_THRESHOLD = ("#6d9cc3", "#122b4d")
_DIFFERENCE_RAMP = ((-1.0, "#b35806"), (-0.5, "#f1a340"), (0.0, "#f7f7f7"), (0.5, "#998ec3"), (1.0, "#542788"))
_CLASSES = ((0, "#dddddd", "Neither"), (1, "#cc79a7", "RF only"), (2, "#e69f00", "MISO only"), (3, "#0072b2", "Both"))


def _shaded(
    layer: QgsRasterLayer, items: List[QgsColorRampShader.ColorRampItem], band: int = 1
) -> QgsSingleBandPseudoColorRenderer:
    lowest, highest = items[0].value, items[-1].value
    function = QgsColorRampShader(lowest, highest)
    function.setColorRampType(QgsColorRampShader.Type.Interpolated)
    function.setColorRampItemList(items)
    function.setClip(False)
    shader = QgsRasterShader()
    shader.setRasterShaderFunction(function)
    renderer = QgsSingleBandPseudoColorRenderer(layer.dataProvider(), band, shader)
    renderer.setClassificationMin(lowest)
    renderer.setClassificationMax(highest)
    return renderer


def _item(value: float, colour: str, label: str) -> QgsColorRampShader.ColorRampItem:
    return QgsColorRampShader.ColorRampItem(value, QColor(colour), label)


def probability_renderer(layer: QgsRasterLayer, top: float = 1.0, band: int = 1) -> QgsSingleBandPseudoColorRenderer:
    """Return the fixed ramp from 0 to ``top`` (1, or 100 for percent)."""
    return _shaded(layer, [_item(v * top, colour, f"{v * top:g}") for v, colour in _PROBABILITY_RAMP], band)


def order_renderer(layer: QgsRasterLayer, top: float = 1.0) -> QgsSingleBandPseudoColorRenderer:
    """Return the same ramp for the band of :data:`SHOWN_ORDER`, found by its description; else for the first band."""
    bands = range(1, layer.bandCount() + 1)
    shown = next((band for band in bands if layer.bandName(band).endswith(SHOWN_ORDER)), 1)
    return probability_renderer(layer, top, shown)


def dominant_renderer(layer: QgsRasterLayer) -> QgsPalettedRasterRenderer:
    """Return the seven orders by their codes, 1 to 7 in alphabetical order."""
    classes = [
        QgsPalettedRasterRenderer.Class(code, QColor(*SOIL_ORDER_COLOURS[name]), name)
        for name, code in class_codes(tuple(SOIL_ORDER_COLOURS)).items()
    ]
    return QgsPalettedRasterRenderer(layer.dataProvider(), 1, classes)


def threshold_renderer(layer: QgsRasterLayer, threshold: float, top: float = 1.0) -> QgsSingleBandPseudoColorRenderer:
    """Return a ramp that is pale below ``threshold`` (0 to 1) and coloured from it upwards. Reads no pixel."""
    edge = threshold * top
    just_below = edge - 1e-6 * top  # two items so close that no probability lies between them: a step
    renderer = _shaded(
        layer,
        [
            _item(0.0, _BELOW_THRESHOLD[0], "0"),
            _item(just_below, _BELOW_THRESHOLD[1], f"below {edge:g}"),
            _item(edge, _ABOVE_THRESHOLD[0], f"{edge:g} and above"),
            _item(top, _ABOVE_THRESHOLD[1], f"{top:g}"),
        ],
    )
    # A continuous legend would show only its two ends, not the threshold.
    settings = QgsColorRampLegendNodeSettings()
    settings.setUseContinuousLegend(False)
    renderer.shader().rasterShaderFunction().setLegendSettings(settings)
    return renderer


def disagreement_renderer(layer: QgsRasterLayer) -> QgsPalettedRasterRenderer:
    """Return the four classes of the contract: 0 neither, 1 RF only, 2 MISO only, 3 both."""
    classes = [QgsPalettedRasterRenderer.Class(value, QColor(colour), label) for value, colour, label in _CLASSES]
    return QgsPalettedRasterRenderer(layer.dataProvider(), 1, classes)


def difference_renderer(layer: QgsRasterLayer) -> QgsSingleBandPseudoColorRenderer:
    """Return the diverging ramp of MISO - RF from -1 to 1."""
    return _shaded(layer, [_item(v, colour, f"{v:+g}" if v else "0") for v, colour in _DIFFERENCE_RAMP])


def apply_style(layer: QgsRasterLayer, style: str) -> None:
    """Give ``layer`` one of the styles by its word."""
    renderers = {
        PROBABILITY: probability_renderer,
        PERCENT: lambda percent_layer: probability_renderer(percent_layer, 100.0),
        DISAGREEMENT: disagreement_renderer,
        DIFFERENCE: difference_renderer,
        ORDER_PROBABILITY: order_renderer,
        ORDER_PERCENT: lambda percent_layer: order_renderer(percent_layer, 100.0),
        DOMINANT: dominant_renderer,
    }
    layer.setRenderer(renderers[style](layer))
    layer.triggerRepaint()


def style_file(style: str) -> Path:
    """Return the shipped style file of a style."""
    return STYLES_FOLDER / (f"{style}.qml" if style.startswith("soil_order_") else f"nsp_{style}.qml")


def write_style_beside(result: Path, style: str) -> Optional[Path]:
    """Copy the style beside a result as ``<name>.qml``, which QGIS loads with it. None if the folder refuses."""
    target = result.with_suffix(".qml")
    try:
        shutil.copyfile(style_file(style), target)
    except OSError:
        return None  # the result is good without it
    return target


class ResultStyler(QgsProcessingLayerPostProcessorInterface):
    """Styles and names a layer when Processing has loaded it, in the main thread."""

    def __init__(self, name: str, style: str) -> None:
        super().__init__()
        self._name = name
        self._style = style

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Called by Processing."""
        if isinstance(layer, QgsRasterLayer):
            layer.setName(self._name)
            apply_style(layer, self._style)


# Processing holds only a C++ pointer: an object without a Python reference would be gone when it is called.
_kept_stylers: List[ResultStyler] = []


def keep_styler(name: str, style: str) -> ResultStyler:
    """Return a :class:`ResultStyler` that lives as long as the plugin (the last hundred do)."""
    styler = ResultStyler(name, style)
    _kept_stylers.append(styler)
    del _kept_stylers[:-100]
    return styler


def add_group(project: QgsProject, name: str, layers: List[Tuple[QgsRasterLayer, bool]]) -> QgsLayerTreeGroup:
    """Add layers to a new group at the top of the project, in the given order.

    Args:
        project: The project.
        name: The group's name.
        layers: Each layer, and whether it is visible.
    """
    group = project.layerTreeRoot().insertGroup(0, name)
    group.setExpanded(True)
    for layer, visible in layers:
        project.addMapLayer(layer, False)
        node = group.addLayer(layer)
        node.setItemVisibilityChecked(visible)
        node.setExpanded(visible)
    return group
