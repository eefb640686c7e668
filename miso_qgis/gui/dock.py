"""The panel: widgets and their connections. What it does is in the presenter; what results look like in styling."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsMapLayerProxyModel,
    QgsProject,
    QgsRasterLayer,
    QgsWkbTypes,
)
from qgis.gui import QgsDockWidget, QgsFileWidget, QgsMapCanvas, QgsMapLayerComboBox
from qgis.PyQt import uic
from qgis.PyQt.QtCore import QSignalBlocker, Qt
from qgis.PyQt.QtWidgets import QLabel, QWidget

from ..application.areas import measure_area, transform_geometry
from ..application.engine_environment import engine_status
from ..application.folders import bundled_models
from ..application.inputs import bands_of, layer_problem, match_bands
from ..application.jobs import MISO_MODEL, MODELS, PROVIDERS, RF_MODEL, read_model
from ..application.settings import read_setting, write_setting
from ..engine.errors import MisoError, Problem
from ..engine.manifest import InputSpec, Manifest
from .engine_dialog import EngineDialog
from .map_tools import AreaTool, PolygonTool, RectangleTool, area_band
from .presenter import MODEL_PROPERTY, Area, PanelPresenter, PanelRequest
from .threshold_row import ThresholdRow

WHOLE, DRAWN, LAYER = "whole", "drawn", "layer"
OUTPUT_SETTING = "output_folder"
# Titles of inputs wrap; narrower than this they would stand one word a line.
_LABEL_WIDTH_PX = 130


class MisoDock(QgsDockWidget):
    """The MISO panel, opened by the plugin's toolbar button."""

    def __init__(self, canvas: QgsMapCanvas, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("MisoPanel")
        self.setWindowTitle(self.tr("MISO"))
        self.ui: Any = QWidget(self)
        uic.loadUi(str(Path(__file__).parent / "dock.ui"), self.ui)
        self.setWidget(self.ui)
        # Wide enough for its widest row: a panel is scrolled down, never sideways.
        scroll_bar = self.ui.scrollArea.verticalScrollBar().sizeHint().width()
        self.ui.setMinimumWidth(self.ui.contents.minimumSizeHint().width() + scroll_bar)
        self.ui.scrollArea.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._canvas = canvas
        self._manifest: Optional[Manifest] = None
        self._model_folder = Path()
        self._input_combos: Dict[str, QgsMapLayerComboBox] = {}
        self._chosen_by_hand: Dict[str, bool] = {}
        self._drawn: Optional[QgsGeometry] = None  # in the CRS below
        self._drawn_crs = QgsCoordinateReferenceSystem()
        self._band = area_band(canvas)
        self._tools: Dict[Any, AreaTool] = {
            self.ui.rectangleButton: RectangleTool(canvas),
            self.ui.polygonButton: PolygonTool(canvas),
        }
        self.presenter = PanelPresenter(self)
        self.thresholds = {
            MISO_MODEL: ThresholdRow(self.ui, MISO_MODEL, self),
            RF_MODEL: ThresholdRow(self.ui, RF_MODEL, self),
        }
        self._fill_choices()
        self._connect()
        self._choose_model()
        self._refresh_layers()
        self._area_changed()

    # --- set-up ---------------------------------------------------------------------------------------------------

    def _fill_choices(self) -> None:
        ui = self.ui
        for folder in bundled_models():
            ui.modelCombo.addItem(folder.name, str(folder))
        ui.areaCombo.addItem(self.tr("Everything that the inputs cover"), WHOLE)
        ui.areaCombo.addItem(self.tr("Area drawn on the map"), DRAWN)
        ui.areaCombo.addItem(self.tr("Polygon layer"), LAYER)
        ui.areaLayerCombo.setFilters(QgsMapLayerProxyModel.Filter.PolygonLayer)
        ui.areaLayerCombo.setAllowEmptyLayer(True)
        ui.outputWidget.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        ui.outputWidget.setFilePath(read_setting(OUTPUT_SETTING))
        ui.crsWidget.setCrs(QgsCoordinateReferenceSystem("EPSG:3338"))
        for title, models in (
            (self.tr("MISO and Random Forest"), MODELS),
            (self.tr("MISO"), (MISO_MODEL,)),
            (self.tr("Random Forest"), (RF_MODEL,)),
        ):
            ui.modelsCombo.addItem(title, models)
        for title, provider in zip(
            (self.tr("Fastest that works"), self.tr("CPU"), self.tr("NVIDIA GPU (CUDA)")), PROVIDERS
        ):
            ui.providerCombo.addItem(title, provider)

    def _connect(self) -> None:
        ui = self.ui
        ui.engineButton.clicked.connect(self._set_up_engine)
        ui.modelCombo.currentIndexChanged.connect(self._choose_model)
        ui.areaCombo.currentIndexChanged.connect(self._area_changed)
        ui.areaLayerCombo.layerChanged.connect(self._area_changed)
        ui.selectedCheck.toggled.connect(self._area_changed)
        ui.resolutionSpin.valueChanged.connect(self._area_changed)
        ui.clearButton.clicked.connect(self.clear_area)
        for button, tool in self._tools.items():
            tool.setButton(button)
            tool.drawn.connect(self._take_drawn)
            button.clicked.connect(self._draw)
        ui.outputWidget.fileChanged.connect(self._check)
        ui.modelsCombo.currentIndexChanged.connect(self._check)
        ui.runButton.clicked.connect(self._run)
        ui.cancelButton.clicked.connect(self._cancel)
        ui.rampButton.clicked.connect(self._show_ramp)
        ui.compareButton.clicked.connect(self._compare)
        for row in self.thresholds.values():
            row.changed.connect(self._thresholds_changed)
        self.presenter.started.connect(self._on_started)
        self.presenter.progressed.connect(self._on_progressed)
        self.presenter.noted.connect(self._on_noted)
        self.presenter.ended.connect(self._on_ended)
        self.presenter.layers_added.connect(self._on_layers_added)
        self._canvas.destinationCrsChanged.connect(self._show_band)
        project = QgsProject.instance()
        # Later, not now: the combo boxes hear of the same layers, and may hear of them after this panel.
        queued = Qt.ConnectionType.QueuedConnection
        project.layersAdded.connect(self._refresh_layers, queued)
        project.layersRemoved.connect(self._refresh_layers, queued)

    def close_down(self) -> None:
        """Stop a run, take the drawing off the map and let go of the project. For the plugin's unload."""
        self.presenter.stop_now()
        project = QgsProject.instance()
        project.layersAdded.disconnect(self._refresh_layers)
        project.layersRemoved.disconnect(self._refresh_layers)
        self._canvas.destinationCrsChanged.disconnect(self._show_band)
        for tool in self._tools.values():
            self._canvas.unsetMapTool(tool)
            tool.remove()
            tool.deleteLater()
        self._canvas.scene().removeItem(self._band)

    def _show_engine(self) -> bool:
        status = engine_status()
        self.ui.engineLabel.setText(status.text)
        self.ui.engineLabel.setToolTip(str(status.folder))
        self.ui.engineButton.setText(self.tr("Engine…") if status.ready else self.tr("Set Up Engine…"))
        return status.ready

    def _set_up_engine(self) -> None:
        dialog = EngineDialog(self)
        dialog.exec()
        dialog.deleteLater()
        self._check()

    # --- model and inputs -----------------------------------------------------------------------------------------

    def _choose_model(self, *_: object) -> None:
        self._manifest = None
        text = self.tr("No model came with this plugin. Install the plugin again.")
        folder = self.ui.modelCombo.currentData()
        if folder:
            self._model_folder = Path(folder)
            try:
                self._manifest = read_model(self._model_folder)
                text = _model_text(self._manifest)
            except MisoError as error:
                text = str(error)
        self.ui.modelLabel.setText(text)
        self._make_input_rows()
        self._check()

    def _make_input_rows(self) -> None:
        form = self.ui.inputsForm
        while form.rowCount():
            form.removeRow(0)
        self._input_combos = {}
        self._chosen_by_hand = {}
        for name, spec in (self._manifest.inputs if self._manifest else {}).items():
            combo = QgsMapLayerComboBox(self.ui)
            combo.setObjectName(f"input_{name}")
            combo.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
            combo.setAllowEmptyLayer(True)
            combo.setMinimumContentsLength(12)
            combo.setToolTip(_input_text(name, spec))
            combo.activated.connect(lambda _, name=name: self._chosen_by_hand.update({name: True}))
            combo.layerChanged.connect(self._check)
            label = QLabel(spec.title, self.ui)
            label.setWordWrap(True)
            label.setMinimumWidth(_LABEL_WIDTH_PX)
            form.addRow(label, combo)
            self._input_combos[name] = combo
        self._preselect()

    def _preselect(self) -> None:
        if self._manifest is None:
            return
        layers = [layer for layer in QgsProject.instance().mapLayers().values() if isinstance(layer, QgsRasterLayer)]
        usable = [
            layer for layer in layers if layer_problem(layer) is None and not layer.customProperty(MODEL_PROPERTY)
        ]
        owners = {band.source: layer for layer in usable for band in bands_of(layer)}
        found, _ = match_bands(self._manifest.inputs, [band for layer in usable for band in bands_of(layer)])
        for name, combo in self._input_combos.items():
            current = combo.currentLayer()
            if self._chosen_by_hand.get(name) and current is not None:
                continue
            with QSignalBlocker(combo):
                combo.setLayer(owners[found[name].source] if name in found else None)

    def _refresh_layers(self, *_: object) -> None:
        self._preselect()
        for row in self.thresholds.values():
            row.refresh_layers()
        self._thresholds_changed()
        self._check()

    # --- area -----------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        for button, tool in self._tools.items():
            if button is self.sender():
                self._canvas.setMapTool(tool)

    def _take_drawn(self, geometry: QgsGeometry) -> None:
        self._drawn = QgsGeometry(geometry)
        self._drawn_crs = self._canvas.mapSettings().destinationCrs()
        self._canvas.unsetMapTool(self.sender())
        index = self.ui.areaCombo.findData(DRAWN)
        self.ui.areaCombo.setCurrentIndex(index)
        self._show_band()
        self._area_changed()

    def clear_area(self) -> None:
        """Forget the drawn area."""
        self._drawn = None
        self._show_band()
        self._area_changed()

    def _show_band(self) -> None:
        self._band.reset(QgsWkbTypes.GeometryType.PolygonGeometry)
        if self._drawn is not None and self.ui.areaCombo.currentData() == DRAWN:
            crs = self._canvas.mapSettings().destinationCrs()
            self._band.setToGeometry(transform_geometry(self._drawn, self._drawn_crs, crs), None)

    def _area(self) -> Optional[Area]:
        kind = self.ui.areaCombo.currentData()
        if kind == DRAWN and self._drawn is not None:
            return Area((self._drawn,), self._drawn_crs, self.tr("drawn area"))
        layer = self.ui.areaLayerCombo.currentLayer()
        if kind == LAYER and layer is not None:
            features = layer.selectedFeatures() if self.ui.selectedCheck.isChecked() else layer.getFeatures()
            return Area(tuple(feature.geometry() for feature in features), layer.crs(), layer.name())
        return None

    def _area_changed(self, *_: object) -> None:
        ui = self.ui
        kind = ui.areaCombo.currentData()
        for widget in (ui.areaLayerCombo, ui.selectedCheck):
            widget.setVisible(kind == LAYER)
        ui.clearButton.setEnabled(self._drawn is not None)
        area = self._area()
        text = ""
        if area is not None:
            geometries = [geometry for geometry in area.geometries if not geometry.isEmpty()]
            if geometries:
                whole = QgsGeometry.unaryUnion(geometries) if len(geometries) > 1 else geometries[0]
                text = measure_area(whole, area.crs, ui.resolutionSpin.value()).describe(ui.resolutionSpin.value())
            else:
                text = self.tr("No polygon is selected.")
        elif kind == DRAWN:
            text = self.tr("Draw a rectangle or a polygon on the map.")
        ui.areaLabel.setText(text)
        ui.areaLabel.setVisible(bool(text))
        self._show_band()
        self._check()

    # --- running --------------------------------------------------------------------------------------------------

    def request(self) -> Optional[PanelRequest]:
        """Return what is chosen now; None without a model."""
        if self._manifest is None:
            return None
        area = self._area()
        has_polygon = area is not None and any(not geometry.isEmpty() for geometry in area.geometries)
        crs = self.ui.crsWidget.crs()
        return PanelRequest(
            model=self._model_folder,
            manifest=self._manifest,
            layers={name: combo.currentLayer() for name, combo in self._input_combos.items()},
            area=area,
            area_is_missing=self.ui.areaCombo.currentData() != WHOLE and not has_polygon,
            output_folder=self.ui.outputWidget.filePath(),
            crs=crs.authid() or crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT_PREFERRED),
            resolution_m=self.ui.resolutionSpin.value(),
            models=tuple(self.ui.modelsCombo.currentData()),
            percent=self.ui.percentCheck.isChecked(),
            provider=self.ui.providerCombo.currentData(),
        )

    def _check(self, *_: object) -> None:
        request = self.request()
        problems = self.presenter.problems(request) if request else []
        self.ui.inputsLabel.setText(self._status_text(request, problems))
        # Asked each time: the engine may have been set up or removed outside this panel.
        ready = self._show_engine() and request is not None and not problems
        self.ui.runButton.setEnabled(ready and not self.presenter.is_running)

    def _status_text(self, request: Optional[PanelRequest], problems: Sequence[Problem]) -> str:
        if request is None:
            return ""
        if problems:
            return "\n".join(f"• {problem}" for problem in problems)
        return self.tr("Ready: every input has a layer.")

    def _run(self) -> None:
        request = self.request()
        if request is None or self.presenter.is_running:
            return
        write_setting(OUTPUT_SETTING, request.output_folder)
        self.presenter.predict(request)

    def _cancel(self) -> None:
        self.ui.cancelButton.setEnabled(False)
        self.ui.messageLabel.setText(self.tr("Cancelling…"))
        self.presenter.cancel()

    def _on_started(self) -> None:
        self.ui.runButton.setEnabled(False)
        self.ui.compareButton.setEnabled(False)
        self.ui.cancelButton.setEnabled(True)
        self.ui.progressBar.setEnabled(True)
        self.ui.progressBar.setRange(0, 0)
        self.ui.messageLabel.setText(self.tr("Starting the engine"))

    def _on_progressed(self, percent: float, text: str) -> None:
        if percent < 0:
            self.ui.progressBar.setRange(0, 0)
        else:
            self.ui.progressBar.setRange(0, 100)
            self.ui.progressBar.setValue(round(percent))
        if text and self.ui.cancelButton.isEnabled():
            self.ui.messageLabel.setText(text)

    def _on_noted(self, text: str) -> None:
        self._notes = [*getattr(self, "_notes", []), text]

    def _on_ended(self, problems: Optional[List[Problem]]) -> None:
        notes: List[str] = getattr(self, "_notes", [])
        self._notes = []
        self.ui.cancelButton.setEnabled(False)
        self.ui.progressBar.setRange(0, 100)
        self.ui.progressBar.setValue(100 if problems == [] else 0)
        self.ui.progressBar.setEnabled(False)
        if problems is None:
            text = self.tr("Cancelled. Nothing was written.")
        elif problems:
            text = "\n".join(str(problem) for problem in problems)
        else:
            text = "\n".join([self.tr("Done."), *notes])
        self.ui.messageLabel.setText(text)
        self._thresholds_changed()
        self._check()

    def _on_layers_added(self, layers: Dict[str, QgsRasterLayer]) -> None:
        for model, row in self.thresholds.items():
            row.refresh_layers()
            row.show_layer(layers.get(model))
        self._thresholds_changed()

    # --- thresholds -----------------------------------------------------------------------------------------------

    def _thresholds_changed(self) -> None:
        layers = [row.layer for row in self.thresholds.values()]
        self.ui.thresholdGroup.setEnabled(any(layer is not None for layer in layers))
        self.ui.compareButton.setEnabled(all(layer is not None for layer in layers) and not self.presenter.is_running)
        self.ui.thresholdLabel.setText(
            self.tr("Layers of agreement are files: each keeps the threshold in its name. Compare makes a new one.")
            if all(layer is not None for layer in layers)
            else ""
        )

    def _show_ramp(self) -> None:
        for row in self.thresholds.values():
            row.show_ramp()

    def _compare(self) -> None:
        miso, rf = (self.thresholds[model].layer for model in MODELS)
        if miso is not None and rf is not None and not self.presenter.is_running:
            self.presenter.compare(miso, rf, {model: row.threshold for model, row in self.thresholds.items()})


def _model_text(manifest: Manifest) -> str:
    lines = [manifest.title]
    if manifest.simulated:
        lines.append("Trained on simulated data: for trying out only.")
    lines += [manifest.comparison] if manifest.comparison else []
    lines += manifest.limits[:2]
    return "\n".join(lines)


def _input_text(name: str, spec: InputSpec) -> str:
    unit = f", in {spec.unit}" if spec.unit else ""
    words = ", ".join(dict.fromkeys((name, *spec.aliases)))
    return f"{spec.title}{unit}; the band described so, else the first. Recognised by: {words}"
