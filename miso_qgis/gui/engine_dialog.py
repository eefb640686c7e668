"""The dialog that sets up the engine: shows the plan first, then does it in the background."""

from __future__ import annotations

from typing import Any, Dict, Optional

from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
)
from qgis.gui import QgsFileWidget
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from ..application.engine_environment import FOLDER, PYPI


class _SignalFeedback(QgsProcessingFeedback):
    """Feedback of a worker thread as signals, which Qt delivers in the main thread."""

    told = pyqtSignal(str)
    failed = pyqtSignal(str)

    def __init__(self) -> None:
        super().__init__(False)

    def pushInfo(self, info: str) -> None:
        self.told.emit(info)

    def pushConsoleInfo(self, info: str) -> None:
        self.told.emit(info)

    def setProgressText(self, text: str) -> None:
        self.told.emit(text)

    def reportError(self, error: str, fatalError: bool = False) -> None:
        self.failed.emit(error)


class EngineDialog(QDialog):
    """Source, plan, progress. Runs the algorithm ``miso:setupengine``, so that both ways do the same."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("MisoEngineDialog")
        self.setWindowTitle(self.tr("Set Up Engine"))
        self.resize(560, 480)
        self.pypi = QRadioButton(self.tr("From the Python Package Index (network)"), self)
        self.folder = QRadioButton(self.tr("From a folder of wheels (no network)"), self)
        self.wheels = QgsFileWidget(self)
        self.wheels.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.gpu = QCheckBox(self.tr("Use an NVIDIA graphics card (a much larger download)"), self)
        self.text = QPlainTextEdit(self)
        self.text.setReadOnly(True)
        self.progress = QProgressBar(self)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close, self)
        self.set_up_button = QPushButton(self.tr("Set Up"), self)
        self.buttons.addButton(self.set_up_button, QDialogButtonBox.ButtonRole.ActionRole)
        layout = QVBoxLayout(self)
        intro = QLabel(
            self.tr(
                "The engine computes the maps outside QGIS, with Python packages of its own. This is what will be done:"
            ),
            self,
        )
        intro.setWordWrap(True)
        for widget in (intro, self.pypi, self.folder, self.wheels, self.gpu, self.text, self.progress, self.buttons):
            layout.addWidget(widget)
        self.pypi.setChecked(True)
        self.wheels.setEnabled(False)
        self.folder.toggled.connect(self.wheels.setEnabled)
        self.folder.toggled.connect(self.show_plan)
        self.wheels.fileChanged.connect(self.show_plan)
        self.gpu.toggled.connect(self.show_plan)
        self.set_up_button.clicked.connect(self.set_up)
        self.buttons.rejected.connect(self.reject)
        self._task: Any = None
        self._context: Any = None
        self._feedback: Optional[_SignalFeedback] = None
        self._replan = False
        self._is_dry = True
        self.show_plan()

    def show_plan(self, *_: object) -> None:
        """Ask the algorithm what it would do."""
        if self._task is not None:
            self._replan = True
            return
        self.text.clear()
        self._start(dry_run=True)

    def set_up(self) -> None:
        """Do what the plan says."""
        if self._task is None:
            self._start(dry_run=False)

    def reject(self) -> None:
        """Close; a setup under way is cancelled first."""
        if self._feedback is not None and self._task is not None and not self._is_dry:
            self._feedback.cancel()
            self.text.appendPlainText(self.tr("Cancelling…"))
            return
        super().reject()

    def _parameters(self, dry_run: bool) -> Dict[str, Any]:
        # By key, as every caller of an algorithm does: the keys are frozen, and gui does not import algorithms.
        return {
            "SOURCE": FOLDER if self.folder.isChecked() else PYPI,
            "WHEELS": self.wheels.filePath() if self.folder.isChecked() else None,
            "GPU": self.gpu.isChecked(),
            "DRY_RUN": dry_run,
        }

    def _start(self, dry_run: bool) -> None:
        if self.folder.isChecked() and not self.wheels.filePath():
            self.text.setPlainText(self.tr("Choose the folder that holds the .whl files."))
            self.set_up_button.setEnabled(False)
            return
        self._is_dry = dry_run
        self.set_up_button.setEnabled(False)
        close = self.buttons.button(QDialogButtonBox.StandardButton.Close)
        close.setText(self.tr("Close") if dry_run else self.tr("Cancel"))
        self._context = QgsProcessingContext()
        self._feedback = _SignalFeedback()
        self._feedback.told.connect(self.text.appendPlainText)
        self._feedback.failed.connect(self.text.appendPlainText)
        self._feedback.progressChanged.connect(lambda percent: self.progress.setValue(round(percent)))
        algorithm = QgsApplication.processingRegistry().algorithmById("miso:setupengine")
        # Task, context and feedback are kept until it ends: Qt owns none of the last two.
        self._task = QgsProcessingAlgRunnerTask(algorithm, self._parameters(dry_run), self._context, self._feedback)
        self._task.executed.connect(self._on_executed)
        QgsApplication.taskManager().addTask(self._task)

    def _on_executed(self, successful: bool, results: Dict[str, Any]) -> None:
        was_dry, self._task = self._is_dry, None
        self.buttons.button(QDialogButtonBox.StandardButton.Close).setText(self.tr("Close"))
        if self._replan:
            self._replan = False
            self.show_plan()
            return
        self.set_up_button.setEnabled(successful and was_dry)
        if not was_dry:
            self.text.appendPlainText(
                self.tr("The engine is ready.") if successful else self.tr("The engine was not set up.")
            )
            if not successful:
                self.set_up_button.setEnabled(True)
