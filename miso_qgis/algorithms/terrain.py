"""Processing algorithm "Terrain covariates"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputRasterLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterRasterLayer,
)

from ..application.inputs import layer_problem, source_path
from ..engine.messages import RasterSource, TerrainJob
from .algorithm import MisoAlgorithm, problems_exception

COVARIATES = {
    "elevation": "Elevation (m)",
    "aspect": "Aspect (degrees)",
    "slope": "Slope (degrees)",
    "maximum_curvature": "Maximum curvature (1/m)",
    "topographic_position_index": "Topographic position index",
    "stream_power_index": "Stream power index",
    "saga_wetness_index": "SAGA wetness index",
}


class TerrainAlgorithm(MisoAlgorithm):
    """Derives the seven terrain covariates from a DEM."""

    NAME = "terrain"
    TITLE = "Terrain covariates"
    BRIEF = (
        "Derives the seven terrain covariates of the MISO paper from a digital elevation model, as SAGA defines them."
    )
    TAGS = ("dem", "slope", "aspect", "curvature", "tpi", "spi", "wetness", "saga")

    DEM, OUTPUT, LOAD = "DEM", "OUTPUT", "LOAD"

    def help_paragraphs(self) -> List[str]:
        """What comes out, on which grid."""
        return [
            self.BRIEF,
            "Writes elevation, aspect, slope, maximum curvature, topographic position index, stream power index "
            "and SAGA "
            "wetness index as GeoTIFF files into one folder, on the grid of the DEM. Pixels without data stay so.",
            "The DEM must have a projected CRS in metres. The position index is standardised over the raster; a "
            "prediction derives its own covariates with the statistics of the model's training.",
        ]

    def initAlgorithm(self, configuration: Dict[str, Any]) -> None:
        """Declare the parameters."""
        self.add(
            QgsProcessingParameterRasterLayer(self.DEM, self.tr("Digital elevation model")),
            "Raster file with elevations in metres in its first band, in a projected CRS in metres.",
        )
        self.add(
            QgsProcessingParameterBoolean(self.LOAD, self.tr("Add the layers to the project"), defaultValue=True),
            "Adds the seven rasters to the project when the run was started from QGIS.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterFolderDestination(self.OUTPUT, self.tr("Folder for the covariates")),
            "Folder for the seven files; made if it is missing. Files of the same names in it are replaced.",
        )
        for covariate, title in COVARIATES.items():
            self.addOutput(QgsProcessingOutputRasterLayer(covariate.upper(), self.tr(title)))

    def prepareAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Resolve the layer in the main thread."""
        layer = self.parameterAsRasterLayer(parameters, self.DEM, context)
        problem = layer_problem(layer)
        if problem:
            raise problems_exception([problem])
        self._dem = RasterSource(source_path(layer))
        return True

    def processAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Dict[str, Any]:
        """Run the engine."""
        folder = Path(self.parameterAsString(parameters, self.OUTPUT, context))
        result = self.run_engine(TerrainJob(self._dem, str(folder)), [str(folder / "any")], feedback)
        outputs = {covariate: result.outputs[covariate] for covariate in COVARIATES if covariate in result.outputs}
        if self.parameterAsBoolean(parameters, self.LOAD, context) and context.project() is not None:
            for covariate, path in outputs.items():
                details = QgsProcessingContext.LayerDetails(
                    self.tr(COVARIATES[covariate]), context.project(), covariate.upper()
                )
                context.addLayerToLoadOnCompletion(path, details)
        return {self.OUTPUT: str(folder), **{covariate.upper(): path for covariate, path in outputs.items()}}
