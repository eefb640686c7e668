"""Processing algorithm "Compare two probability layers"."""

from __future__ import annotations

from typing import Any, Dict, List

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
)

from ..application.inputs import is_simulated, layer_problem, source_path
from ..application.jobs import (
    NSP_DIFFERENCE,
    NSP_DISAGREEMENT,
    output_problems,
    result_layers,
    threshold_text,
)
from ..engine.messages import CompareJob, RasterSource
from .algorithm import MisoAlgorithm, problems_exception


class CompareAlgorithm(MisoAlgorithm):
    """Maps where two probability layers agree and disagree at two thresholds."""

    NAME = "compare"
    TITLE = "Compare two probability layers"
    BRIEF = "Maps where MISO and Random Forest agree and disagree at thresholds of your choice, and by how much."
    TAGS = ("disagreement", "difference", "threshold", "random forest")

    MISO, RF = "MISO", "RF"
    THRESHOLD_MISO, THRESHOLD_RF = "THRESHOLD_MISO", "THRESHOLD_RF"
    OUTPUT_DISAGREEMENT, OUTPUT_DIFFERENCE, OUTPUT_SUMMARY = (
        "OUTPUT_DISAGREEMENT",
        "OUTPUT_DIFFERENCE",
        "OUTPUT_SUMMARY",
    )

    def help_paragraphs(self) -> List[str]:
        """Classes, grids, and why thresholds matter."""
        return [
            self.BRIEF,
            "Classes: 0 neither, 1 RF only, 2 MISO only, 3 both; 255 where either layer has no data. A "
            "probability equal "
            "to the threshold counts as present. The difference is MISO - RF.",
            "If the grids differ, the second layer is warped onto the grid of the first. Layers in whole percent are "
            "understood as such.",
            "At equal thresholds, part of what you see may only be that one model says yes more often. "
            "Thresholds of equal "
            "recall (in the summary of a prediction) compare more fairly.",
        ]

    def initAlgorithm(self, configuration: Dict[str, Any]) -> None:
        """Declare the parameters."""
        probability = "Probability raster of permafrost: 0 to 1, or whole percent (uint8)."
        self.add(QgsProcessingParameterRasterLayer(self.MISO, self.tr("Probability from MISO")), probability)
        self.add(QgsProcessingParameterRasterLayer(self.RF, self.tr("Probability from Random Forest")), probability)
        for key, title in (
            (self.THRESHOLD_MISO, "Threshold for MISO"),
            (self.THRESHOLD_RF, "Threshold for Random Forest"),
        ):
            self.add(
                QgsProcessingParameterNumber(
                    key,
                    self.tr(title),
                    QgsProcessingParameterNumber.Type.Double,
                    defaultValue=0.5,
                    minValue=0.001,
                    maxValue=0.999,
                ),
                "Probability from which permafrost counts as present, between 0 and 1, also for layers in percent.",
            )
        self.add(
            QgsProcessingParameterRasterDestination(self.OUTPUT_DISAGREEMENT, self.tr("Agreement and disagreement")),
            "GeoTIFF with the four classes.",
        )
        self.add(
            QgsProcessingParameterRasterDestination(
                self.OUTPUT_DIFFERENCE, self.tr("Difference (MISO - RF)"), optional=True, createByDefault=False
            ),
            "GeoTIFF with the signed difference of the probabilities, -1 to 1.",
        )
        self.add(
            QgsProcessingParameterFileDestination(
                self.OUTPUT_SUMMARY, self.tr("Summary"), "JSON (*.json)", optional=True, createByDefault=False
            ),
            "JSON file with the hectares of each class.",
        )

    def prepareAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Resolve the layers in the main thread."""
        layers = [self.parameterAsRasterLayer(parameters, key, context) for key in (self.MISO, self.RF)]
        problems = [problem for problem in map(layer_problem, layers) if problem]
        if problems:
            raise problems_exception(problems)
        self._first, self._second = (RasterSource(source_path(layer)) for layer in layers)
        return True

    def processAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Dict[str, Any]:
        """Run the engine."""
        thresholds = [
            self.parameterAsDouble(parameters, key, context) for key in (self.THRESHOLD_MISO, self.THRESHOLD_RF)
        ]
        paths = {
            NSP_DISAGREEMENT: self.parameterAsOutputLayer(parameters, self.OUTPUT_DISAGREEMENT, context),
            NSP_DIFFERENCE: self.parameterAsOutputLayer(parameters, self.OUTPUT_DIFFERENCE, context),
            "summary": self.parameterAsFileOutput(parameters, self.OUTPUT_SUMMARY, context),
        }
        paths = {key: path for key, path in paths.items() if path}
        problems = output_problems(paths, {self.MISO: self._first.path, self.RF: self._second.path})
        if problems:
            raise problems_exception(problems)
        self.run_engine(
            CompareJob(
                self._first,
                self._second,
                paths[NSP_DISAGREEMENT],
                paths.get(NSP_DIFFERENCE),
                paths.get("summary"),
                *thresholds,
            ),
            paths.values(),
            feedback,
        )
        simulated = is_simulated(self._first.path) or is_simulated(self._second.path)
        self.finish_layers(result_layers(paths, threshold_text(*thresholds), False, simulated), context)
        keys = {
            NSP_DISAGREEMENT: self.OUTPUT_DISAGREEMENT,
            NSP_DIFFERENCE: self.OUTPUT_DIFFERENCE,
            "summary": self.OUTPUT_SUMMARY,
        }
        return {keys[key]: path for key, path in paths.items()}
