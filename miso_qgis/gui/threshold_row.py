"""One model's threshold: layer, slider, number, area above it, what it cost in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

from qgis.core import Qgis, QgsMapLayerProxyModel, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import QObject, QSignalBlocker, pyqtSignal
from qgis.PyQt.QtWidgets import QMenu, QWidget

from ..application.inputs import source_path
from ..application.jobs import TASK
from ..application.styling import probability_renderer, threshold_renderer
from ..application.thresholds import AreaAbove, count_area, describe_cost, named_thresholds
from ..engine.errors import MisoError
from ..engine.manifest import TaskSpec, read_manifest
from .presenter import MODEL_FOLDER_PROPERTY, MODEL_PROPERTY, THRESHOLD_PROPERTY


def is_percent(layer: QgsRasterLayer) -> bool:
    """Return whether a probability layer holds whole percent."""
    return bool(layer.dataProvider().dataType(1) == Qgis.DataType.Byte)


class ThresholdRow(QObject):
    """Restyles a probability layer while the threshold moves. Nothing is computed but one histogram per layer."""

    changed = pyqtSignal()

    def __init__(self, panel: QWidget, model: str, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self._model = model
        self._combo, self._slider, self._spin, self._area_label, self._preset, self._cost = (
            getattr(panel, model + name)
            for name in ("LayerCombo", "Slider", "Spin", "AreaLabel", "PresetButton", "CostLabel")
        )
        self._areas: Dict[str, Optional[AreaAbove]] = {}
        self._menu = QMenu(self._preset)
        self._preset.setMenu(self._menu)
        self._combo.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self._combo.setAllowEmptyLayer(True)
        self._combo.layerChanged.connect(self._choose)
        self._slider.valueChanged.connect(lambda value: self._spin.setValue(value / 100))
        self._spin.valueChanged.connect(self._move)
        self._fill_menu(None)

    @property
    def layer(self) -> Optional[QgsRasterLayer]:
        """The probability layer; None without one."""
        layer = self._combo.currentLayer()
        return layer if isinstance(layer, QgsRasterLayer) and layer.isValid() else None

    @property
    def threshold(self) -> float:
        """The threshold, 0 to 1."""
        return round(float(self._spin.value()), 2)

    def refresh_layers(self) -> None:
        """Offer the probability layers of this model that are in the project."""
        layers = QgsProject.instance().mapLayers().values()
        others = [layer for layer in layers if layer.customProperty(MODEL_PROPERTY) != self._model]
        before = self.layer
        with QSignalBlocker(self._combo):
            self._combo.setExceptedLayerList(others)
        if self.layer is not before:
            self._choose()

    def show_layer(self, layer: Optional[QgsRasterLayer]) -> None:
        """Take a new result."""
        self._combo.setLayer(layer)

    def show_ramp(self) -> None:
        """Show the full range of probability again."""
        layer = self.layer
        if layer is not None:
            layer.removeCustomProperty(THRESHOLD_PROPERTY)
            layer.setRenderer(probability_renderer(layer, 100.0 if is_percent(layer) else 1.0))
            _redraw(layer)

    def _choose(self, *_: object) -> None:
        layer = self.layer
        if layer is not None:
            kept = float(layer.customProperty(THRESHOLD_PROPERTY, 0.5))
            for widget, value in ((self._spin, kept), (self._slider, round(kept * 100))):
                with QSignalBlocker(widget):
                    widget.setValue(value)
        self._fill_menu(layer)
        self._tell()
        self.changed.emit()

    def _move(self, value: float) -> None:
        with QSignalBlocker(self._slider):
            self._slider.setValue(round(value * 100))
        layer = self.layer
        if layer is not None:
            layer.setCustomProperty(THRESHOLD_PROPERTY, self.threshold)
            layer.setRenderer(threshold_renderer(layer, self.threshold, 100.0 if is_percent(layer) else 1.0))
            _redraw(layer)
        self._tell()

    def _tell(self) -> None:
        layer = self.layer
        area = self._area(layer) if layer is not None else None
        if area is None or not area.valid_ha:
            self._area_label.setText("")
        else:
            hectares = area.hectares(self.threshold)
            about = "" if area.is_exact else self.tr("about ")
            self._area_label.setText(
                self.tr("{}{:,.0f} ha at or above it, {:.0%} of the area").format(
                    about, hectares, hectares / area.valid_ha
                )
            )
        task = self._task(layer)
        self._cost.setText(describe_cost(task, self._model, self.threshold) if task else "")
        self._cost.setVisible(bool(self._cost.text()))

    def _area(self, layer: QgsRasterLayer) -> Optional[AreaAbove]:
        if layer.id() not in self._areas:
            try:
                self._areas[layer.id()] = count_area(source_path(layer), is_percent(layer))
            except OSError:
                self._areas[layer.id()] = None
        return self._areas[layer.id()]

    def _task(self, layer: Optional[QgsRasterLayer]) -> Optional[TaskSpec]:
        folder = layer.customProperty(MODEL_FOLDER_PROPERTY) if layer is not None else None
        if not folder:
            return None
        try:
            return read_manifest(Path(folder)).tasks.get(TASK)
        except MisoError:
            return None  # the model has been removed since; the layer is still good

    def _fill_menu(self, layer: Optional[QgsRasterLayer]) -> None:
        self._menu.clear()
        task = self._task(layer)
        named = named_thresholds(task, self._model) if task else {"0.5": 0.5}
        for name, value in named.items():
            action = self._menu.addAction(name if name == f"{value:g}" else f"{name} ({value:.2f})")
            action.setObjectName(f"misoThreshold_{self._model}_{name.replace(' ', '_')}")
            action.triggered.connect(lambda _=False, value=value: self._spin.setValue(value))


def _redraw(layer: QgsRasterLayer) -> None:
    layer.triggerRepaint()
    layer.emitStyleChanged()  # the legend follows
