"""What the panel does, without its widgets: checks a request, runs it, adds the results, compares again.

Belongs to the main thread. The engine is another process, so nothing here blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Dict, List, Optional, Tuple

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsMessageLog,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QObject, pyqtSignal

from ..application.areas import write_area
from ..application.engine_client import EngineCommand, EngineRun
from ..application.engine_environment import engine_command
from ..application.inputs import is_simulated, layer_problem, source_path, sources_of_choice
from ..application.jobs import (
    MISO_MODEL,
    MODELS,
    NSP_DISAGREEMENT,
    PROBABILITY_KEYS,
    RF_MODEL,
    ResultLayer,
    make_folders,
    marked,
    model_problems,
    result_layers,
    threshold_text,
)
from ..application.styling import add_group, apply_style, write_style_beside
from ..engine.errors import MisoError, Problem
from ..engine.manifest import Manifest
from ..engine.messages import CompareJob, Job, Note, PredictJob, Progress, RasterSource, Result

LOG_TAG = "MISO"
AREA_FILE = "area.gpkg"
MODEL_PROPERTY = "miso_qgis/model"  # marks a probability layer as MISO's or RF's, also in a saved project
THRESHOLD_PROPERTY = "miso_qgis/threshold"
MODEL_FOLDER_PROPERTY = "miso_qgis/model_folder"


@dataclass(frozen=True)
class Area:
    """The area of interest: polygons and their CRS."""

    geometries: Tuple[QgsGeometry, ...]
    crs: QgsCoordinateReferenceSystem
    name: str = ""


@dataclass(frozen=True)
class PanelRequest:
    """Everything that the panel's user has chosen. ``area`` None means all that the inputs cover."""

    model: Path
    manifest: Manifest
    layers: Dict[str, Optional[QgsRasterLayer]]
    area: Optional[Area]
    area_is_missing: bool
    output_folder: str
    crs: str = "EPSG:3338"
    resolution_m: float = 10.0
    models: Tuple[str, ...] = MODELS
    percent: bool = False
    provider: str = "auto"
    thresholds: Dict[str, float] = field(default_factory=lambda: dict.fromkeys(MODELS, 0.5))


@dataclass
class _Run:
    """A run under way: its process, its scratch folder, and what to do with its result."""

    process: EngineRun
    scratch: TemporaryDirectory[str]
    finish: Callable[[Result], None]


class PanelPresenter(QObject):
    """Runs requests one at a time.

    Signals: :attr:`started`; :attr:`progressed` with percent (-1 while the amount is not known) and text;
    :attr:`noted` with a sentence; :attr:`ended` with a list of problems, empty when all went well, None after Cancel;
    :attr:`layers_added` with {model: layer} of new probability layers.
    """

    started = pyqtSignal()
    progressed = pyqtSignal(float, str)
    noted = pyqtSignal(str)
    ended = pyqtSignal(object)
    layers_added = pyqtSignal(object)

    def __init__(self, parent: Optional[QObject] = None, command: Callable[[], EngineCommand] = engine_command) -> None:
        super().__init__(parent)
        self._command = command
        self._run: Optional[_Run] = None

    @property
    def is_running(self) -> bool:
        """Whether a run is under way."""
        return self._run is not None

    @property
    def process_id(self) -> int:
        """The engine's process id, 0 without a run."""
        return self._run.process.process_id if self._run else 0

    def problems(self, request: PanelRequest) -> List[Problem]:
        """Return everything that stands in the way of a request, without starting anything."""
        problems = model_problems(request.manifest, request.models)
        if not request.models:
            problems.append(Problem("Models", "none is chosen.", "", "Choose MISO, Random Forest, or both."))
        usable = {}
        for name, spec in request.manifest.inputs.items():
            layer = request.layers.get(name)
            if layer is None:
                words = ", ".join(dict.fromkeys((name, *spec.aliases)))
                problems.append(
                    Problem(
                        spec.title,
                        "no layer is chosen.",
                        "",
                        f"Choose one. A layer is preselected if its name holds: {words}.",
                    )
                )
            else:
                problem = layer_problem(layer)
                if problem:
                    problems.append(problem)
                else:
                    usable[name] = layer
        problems += sources_of_choice(request.manifest.inputs, usable)[1]
        if request.area_is_missing:
            problems.append(
                Problem("Area", "none is drawn or chosen.", "", "Draw one, choose a layer, or take the whole inputs.")
            )
        if not request.output_folder:
            problems.append(Problem("Output folder", "none is chosen.", "", "Choose a folder for the results."))
        return problems

    def predict(self, request: PanelRequest) -> None:
        """Start a prediction. Everything else is told by signals."""
        moment = datetime.now()
        folder = Path(request.output_folder) / f"miso_{moment:%Y-%m-%d_%H%M%S}"
        name = (
            f"MISO – {request.area.name} {moment:%H:%M}"
            if request.area and request.area.name
            else f"MISO – {moment:%Y-%m-%d %H:%M}"
        )
        scratch = TemporaryDirectory(prefix="miso_")
        try:
            make_folders([str(folder / "summary.json")])
            area = None
            if request.area is not None:
                # Beside the results, so that their summary names a file that is still there.
                area = str(write_area(request.area.geometries, request.area.crs, folder / AREA_FILE))
        except MisoError as error:
            _remove_run_folder(folder)
            scratch.cleanup()
            self.ended.emit(error.problems)
            return
        threshold = request.thresholds[MISO_MODEL]
        chosen = {name: layer for name, layer in request.layers.items() if layer is not None}
        sources, _ = sources_of_choice(request.manifest.inputs, chosen)
        job = PredictJob(
            model=str(request.model),
            inputs=sources,
            output_dir=str(folder),
            aoi=area,
            crs=request.crs,
            resolution_m=request.resolution_m,
            models=request.models,
            threshold=threshold,
            percent=request.percent,
            provider=request.provider,
        )

        def finish(result: Result) -> None:
            simulated, text = request.manifest.simulated, threshold_text(threshold, threshold)
            layers = result_layers(result.outputs, text, request.percent, simulated)
            self._add_layers(marked(name, simulated), layers, request)

        self._start(job, scratch, finish, folder)

    def compare(self, miso: QgsRasterLayer, rf: QgsRasterLayer, thresholds: Dict[str, float]) -> None:
        """Make a new layer of agreement at other thresholds, beside the first layer's file."""
        text = threshold_text(thresholds[MISO_MODEL], thresholds[RF_MODEL])
        stem = text.replace(" / ", "_")
        path = Path(source_path(miso)).parent / f"{NSP_DISAGREEMENT}_{stem}.tif"
        job = CompareJob(
            RasterSource(source_path(miso)),
            RasterSource(source_path(rf)),
            str(path),
            first_threshold=thresholds[MISO_MODEL],
            second_threshold=thresholds[RF_MODEL],
        )

        def finish(result: Result) -> None:  # reason: the path was ours to choose
            simulated = any(is_simulated(source_path(each)) for each in (miso, rf))
            (layer,) = result_layers({NSP_DISAGREEMENT: str(path)}, text, False, simulated)
            group = QgsProject.instance().layerTreeRoot().findLayer(miso.id())
            raster = self._load(layer, None)
            QgsProject.instance().addMapLayer(raster, False)
            parent = group.parent() if group is not None else QgsProject.instance().layerTreeRoot()
            parent.insertLayer(0, raster)

        self._start(job, TemporaryDirectory(prefix="miso_"), finish, None)

    def cancel(self) -> None:
        """Stop the run; :attr:`ended` follows within two seconds."""
        if self._run is not None:
            self._run.process.cancel()

    def stop_now(self) -> None:
        """Stop the run and wait for it, for the plugin's unload."""
        if self._run is not None:
            self._run.process.stop_now()

    def _start(
        self, job: Job, scratch: TemporaryDirectory[str], finish: Callable[[Result], None], folder: Optional[Path]
    ) -> None:
        try:
            process = EngineRun(self._command(), self)
        except MisoError as error:
            scratch.cleanup()
            self.ended.emit(error.problems)
            return
        self._run = _Run(process, scratch, finish)
        process.progressed.connect(self._on_progress)
        process.noted.connect(self._on_note)
        process.logged.connect(lambda line: QgsMessageLog.logMessage(line, LOG_TAG, Qgis.MessageLevel.Info, False))
        process.ended.connect(lambda: self._on_ended(folder))
        self.started.emit()
        process.start(job)

    def _on_progress(self, progress: Progress) -> None:
        percent = 100.0 * progress.done / progress.total if progress.total > 0 else -1.0
        self.progressed.emit(percent, progress.text)

    def _on_note(self, note: Note) -> None:
        level = Qgis.MessageLevel.Warning if note.level == "warning" else Qgis.MessageLevel.Info
        QgsMessageLog.logMessage(note.text, LOG_TAG, level, False)
        if note.level == "warning":
            self.noted.emit(note.text)

    def _on_ended(self, folder: Optional[Path]) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        process = run.process
        if process.result is not None:
            run.finish(process.result)
        elif folder is not None:
            _remove_run_folder(folder)
        run.scratch.cleanup()
        process.deleteLater()
        if process.error is None:
            self.ended.emit([])
        elif process.error.code == "cancelled":
            self.ended.emit(None)
        else:
            QgsMessageLog.logMessage(str(process.error), LOG_TAG, Qgis.MessageLevel.Critical, False)
            self.ended.emit(process.error.problems)

    def _add_layers(self, name: str, results: List[ResultLayer], request: PanelRequest) -> None:
        models = {key: model for model, key in PROBABILITY_KEYS.items()}
        added = []
        by_model: Dict[str, QgsRasterLayer] = {}
        for result in results:
            layer = self._load(result, request)
            model = models.get(result.key)
            if model is not None:
                layer.setCustomProperty(MODEL_PROPERTY, model)
                layer.setCustomProperty(MODEL_FOLDER_PROPERTY, str(request.model))
                by_model[model] = layer
            # All but the probability by MISO start hidden: one map at a time can be read.
            added.append((layer, model == request.models[0]))
        if added and not any(visible for _, visible in added):
            added[0] = (added[0][0], True)  # a model without permafrost: the most probable soil order
        add_group(QgsProject.instance(), name, added)
        self.layers_added.emit(by_model)

    def _load(self, result: ResultLayer, request: Optional[PanelRequest]) -> QgsRasterLayer:
        write_style_beside(result.path, result.style)
        layer = QgsRasterLayer(str(result.path), result.name)
        apply_style(layer, result.style)
        return layer


def _remove_run_folder(folder: Path) -> None:
    """Remove the folder of a run without a result: its area, and itself if nothing else is in it."""
    for name in (AREA_FILE, f"{AREA_FILE}-wal", f"{AREA_FILE}-shm", f"{AREA_FILE}-journal"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
