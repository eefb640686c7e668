"""Processing algorithm "Set up engine"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputFolder,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
)

from ..application.engine_environment import FOLDER, PYPI, plan_setup, set_up
from ..engine.errors import MisoError
from .algorithm import MisoAlgorithm, as_exception


class SetUpEngineAlgorithm(MisoAlgorithm):
    """Makes the engine's Python environment, after saying what it will do."""

    NAME = "setupengine"
    TITLE = "Set up engine"
    BRIEF = "Installs the Python packages that compute the maps into an environment of their own, outside QGIS."
    TAGS = ("install", "environment", "python", "onnxruntime", "offline")
    NEEDS_ENGINE = False

    SOURCE, WHEELS, GPU, DRY_RUN, ENVIRONMENT = "SOURCE", "WHEELS", "GPU", "DRY_RUN", "ENVIRONMENT"

    def help_paragraphs(self) -> List[str]:
        """What it does, where, and how to try it without doing it."""
        return [
            self.BRIEF,
            "Nothing is installed into QGIS or into the plugin. The environment lies in your data folder, or where the "
            "variable MISO_QGIS_ENGINE_ENV says. Every package is pinned, and its digest is checked.",
            "Without network: copy the wheels that the lock file names into a folder, and choose it as the source.",
            "Turn on Dry run to read what would be done. An environment that is already complete is left as it is.",
        ]

    def initAlgorithm(self, configuration: Dict[str, Any]) -> None:
        """Declare the parameters."""
        self.add(
            QgsProcessingParameterEnum(
                self.SOURCE,
                self.tr("Packages from"),
                [self.tr("Python Package Index (network)"), self.tr("Folder of wheels (no network)")],
                defaultValue=PYPI,
            ),
            "0 downloads from the Python Package Index, or from the index that pip is configured for; 1 takes "
            "them from a folder.",
        )
        self.add(
            QgsProcessingParameterFile(
                self.WHEELS,
                self.tr("Folder of wheels"),
                behavior=QgsProcessingParameterFile.Behavior.Folder,
                optional=True,
            ),
            "Folder with one .whl file for each package of the lock file. Only used with source 1.",
        )
        self.add(
            QgsProcessingParameterBoolean(self.GPU, self.tr("Use an NVIDIA graphics card"), defaultValue=False),
            "Installs onnxruntime-gpu in place of onnxruntime: a much larger download, only of use with an "
            "NVIDIA card.",
        )
        self.add(
            QgsProcessingParameterBoolean(self.DRY_RUN, self.tr("Dry run"), defaultValue=False),
            "Only says what would be done.",
        )
        self.addOutput(QgsProcessingOutputFolder(self.ENVIRONMENT, self.tr("Engine environment")))

    def processAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Dict[str, Any]:
        """Say what will be done, then do it."""
        wheels = None
        if self.parameterAsEnum(parameters, self.SOURCE, context) == FOLDER:
            wheels = Path(self.parameterAsString(parameters, self.WHEELS, context))
        gpu = self.parameterAsBoolean(parameters, self.GPU, context)
        try:
            plan = plan_setup(wheels, gpu, feedback)
            for line in plan.describe().splitlines():
                feedback.pushInfo(line)
            if not self.parameterAsBoolean(parameters, self.DRY_RUN, context):
                set_up(plan, feedback)
        except MisoError as error:
            raise as_exception(error) from error
        return {self.ENVIRONMENT: str(plan.folder)}

    def checkParameterValues(self, parameters: Dict[str, Any], context: QgsProcessingContext) -> Tuple[bool, str]:
        """A folder is needed with source 1."""
        from_folder = self.parameterAsEnum(parameters, self.SOURCE, context) == FOLDER
        if from_folder and not self.parameterAsString(parameters, self.WHEELS, context):
            return False, self.tr("Source 1 needs the folder of wheels (WHEELS).")
        return super().checkParameterValues(parameters, context)
