"""Processing algorithm "Map of results": a figure for a report, drawn by QGIS with the plugin's styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from ..application.inputs import layer_problem, source_path
from ..application.map_figure import FigureInputs, draw_figure
from ..engine.errors import MisoError
from .algorithm import MisoAlgorithm, as_exception, problems_exception


class ResultsMapAlgorithm(MisoAlgorithm):
    """Draws MISO, Random Forest and their disagreement side by side over the terrain."""

    NAME = "map"
    TITLE = "Map of results"
    BRIEF = "Draws MISO, Random Forest and their disagreement side by side over the terrain, as a picture for a report."
    TAGS = ("figure", "layout", "png", "report")
    NEEDS_ENGINE = False

    MISO, RF, DISAGREEMENT, DEM = "MISO", "RF", "DISAGREEMENT", "DEM"
    HEADING, DATA, OUTPUT = "HEADING", "DATA", "OUTPUT"

    def help_paragraphs(self) -> List[str]:
        """What is on the picture."""
        return [
            self.BRIEF,
            "All three maps have the same extent and scale; the probabilities share one legend from 0 to 1.",
        ]

    def initAlgorithm(self, configuration: Dict[str, Any]) -> None:
        """Declare the parameters."""
        self.add(
            QgsProcessingParameterRasterLayer(self.MISO, self.tr("Probability from MISO")), "Result of a prediction."
        )
        self.add(
            QgsProcessingParameterRasterLayer(self.RF, self.tr("Probability from Random Forest")),
            "Result of a prediction.",
        )
        self.add(
            QgsProcessingParameterRasterLayer(self.DISAGREEMENT, self.tr("Agreement and disagreement")),
            "Result of a prediction or of a comparison.",
        )
        self.add(
            QgsProcessingParameterRasterLayer(self.DEM, self.tr("Digital elevation model")),
            "Drawn as shaded relief beneath.",
        )
        self.add(
            QgsProcessingParameterString(
                self.HEADING, self.tr("Heading"), defaultValue=self.tr("Near-surface permafrost (within 1 m)")
            ),
            "Line above the maps.",
        )
        self.add(
            QgsProcessingParameterString(self.DATA, self.tr("Line about the data"), optional=True),
            "Line below the maps: which data, which model.",
        )
        self.add(
            QgsProcessingParameterFileDestination(self.OUTPUT, self.tr("Picture"), "PNG (*.png)"),
            "PNG file, 3000 pixels wide.",
        )

    def flags(self) -> QgsProcessingAlgorithm.Flag:
        """A layout is made of graphics items, which belong to the main thread."""
        return super().flags() | QgsProcessingAlgorithm.Flag.FlagNoThreading

    def processAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Dict[str, Any]:
        """Draw the picture."""
        layers = [
            self.parameterAsRasterLayer(parameters, key, context)
            for key in (self.MISO, self.RF, self.DISAGREEMENT, self.DEM)
        ]
        problems = [problem for problem in map(layer_problem, layers) if problem]
        if problems:
            raise problems_exception(problems)
        miso, rf, disagreement, dem = (Path(source_path(layer)) for layer in layers)
        output = Path(self.parameterAsFileOutput(parameters, self.OUTPUT, context))
        try:
            draw_figure(
                FigureInputs(
                    miso,
                    rf,
                    disagreement,
                    dem,
                    self.parameterAsString(parameters, self.HEADING, context),
                    self.parameterAsString(parameters, self.DATA, context),
                ),
                output,
            )
        except MisoError as error:
            raise as_exception(error) from error
        if feedback.isCanceled():
            raise QgsProcessingException(self.tr("Cancelled."))
        return {self.OUTPUT: str(output)}
