"""Processing algorithm "Predict soil layers"."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Dict, List, Optional, Tuple

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeatureRequest,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSource,
    QgsProcessingFeedback,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterCrs,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
)

from ..application.areas import write_area
from ..application.folders import DEFAULT_MODEL, model_folder
from ..application.inputs import match_inputs
from ..application.jobs import (
    DOMINANT_MISO,
    DOMINANT_RF,
    MODELS,
    NSP_DISAGREEMENT,
    NSP_MISO,
    NSP_RF,
    ORDER_MISO,
    ORDER_RF,
    PROVIDERS,
    SUMMARY,
    model_problems,
    output_problems,
    read_model,
    result_keys,
    result_layers,
    threshold_text,
)
from ..engine.errors import MisoError
from ..engine.messages import PredictJob
from .algorithm import MisoAlgorithm, as_exception, problems_exception

DEFAULT_CRS = "EPSG:3338"  # Alaska Albers: one plane from the Aleutians to the Panhandle


def crs_text(crs: QgsCoordinateReferenceSystem) -> str:
    """Return a CRS as the engine reads it: its code, or WKT where it has none."""
    return crs.authid() or crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT_PREFERRED)


class PredictAlgorithm(MisoAlgorithm):
    """Predicts near-surface permafrost and soil orders with MISO and Random Forest on one grid."""

    NAME = "predict"
    TITLE = "Predict soil layers"
    BRIEF = (
        "Maps the probability of near-surface permafrost, and of soil orders where the model has them, with MISO and "
        "with Random Forest on the same grid."
    )
    TAGS = ("predict", "probability", "onnx", "random forest", "disagreement", "nsp", "soil order", "gelisols")

    MODEL, DEM, LAYERS, AOI, CRS = "MODEL", "DEM", "LAYERS", "AOI", "CRS"
    RESOLUTION, WHICH, THRESHOLD, PERCENT, PROVIDER = "RESOLUTION", "MODELS", "THRESHOLD", "PERCENT", "PROVIDER"
    OUTPUTS: ClassVar[Dict[str, str]] = {
        NSP_MISO: "OUTPUT_NSP_MISO",
        NSP_RF: "OUTPUT_NSP_RF",
        NSP_DISAGREEMENT: "OUTPUT_DISAGREEMENT",
        DOMINANT_MISO: "OUTPUT_DOMINANT_MISO",
        DOMINANT_RF: "OUTPUT_DOMINANT_RF",
        ORDER_MISO: "OUTPUT_SOIL_ORDER_MISO",
        ORDER_RF: "OUTPUT_SOIL_ORDER_RF",
        SUMMARY: "OUTPUT_SUMMARY",
    }

    def help_paragraphs(self) -> List[str]:
        """Inputs, grid, nodata, thresholds and limits."""
        return [
            self.BRIEF,
            "Inputs are matched by name: a layer is recognised by the words of its name, its file's name or a band's "
            "description. They may differ in CRS, resolution and extent; everything is warped to the target grid. All "
            "problems are listed at once.",
            "A pixel where any needed input has no data is nodata in every result. Probabilities are float32 "
            "from 0 to 1 with "
            "nodata -9999. The layer of agreement has the classes 0 neither, 1 RF only, 2 MISO only, 3 both.",
            "A model of soil orders gives a raster with one band of probability per order, and the most probable "
            "order: 1 Andisols, 2 Entisols, 3 Gelisols, 4 Histosols, 5 Inceptisols, 6 Mollisols, 7 Spodosols, "
            "255 no data. Results that the model does not give are left out.",
            "The bundled model cpcrw was trained in one watershed of interior Alaska. Its model card says where it "
            "must not be used.",
        ]

    def initAlgorithm(self, configuration: Dict[str, Any]) -> None:
        """Declare the parameters."""
        self._add_inputs()
        self._add_settings()
        for key, title, help_text in (
            (NSP_MISO, "Permafrost probability (MISO)", "GeoTIFF with the probability by MISO."),
            (NSP_RF, "Permafrost probability (Random Forest)", "GeoTIFF with the probability by Random Forest."),
            (NSP_DISAGREEMENT, "MISO and RF compared", "GeoTIFF with the classes neither, RF only, MISO only, both."),
        ):
            self.add(
                QgsProcessingParameterRasterDestination(self.OUTPUTS[key], self.tr(title), optional=True),
                help_text,
            )
        dominant = "GeoTIFF with the most probable order (codes 1 to 7, nodata 255), from a model of soil orders."
        seven = "GeoTIFF with seven bands of probability, described by order, from a model of soil orders."
        for key, title, help_text in (
            (DOMINANT_MISO, "Most probable soil order (MISO)", dominant),
            (DOMINANT_RF, "Most probable soil order (Random Forest)", dominant),
            (ORDER_MISO, "Soil order probabilities (MISO)", seven),
            (ORDER_RF, "Soil order probabilities (Random Forest)", seven),
        ):
            # Not made by default: most models do not have them.
            self.add(
                QgsProcessingParameterRasterDestination(
                    self.OUTPUTS[key], self.tr(title), optional=True, createByDefault=False
                ),
                help_text,
            )
        self.add(
            QgsProcessingParameterFileDestination(
                self.OUTPUTS[SUMMARY], self.tr("Summary"), "JSON (*.json)", optional=True, createByDefault=False
            ),
            "JSON file with hectares, counts of pixels, the provider that ran, seconds and versions.",
        )

    def _add_inputs(self) -> None:
        self.add(
            QgsProcessingParameterFile(
                self.MODEL,
                self.tr("Model folder"),
                behavior=QgsProcessingParameterFile.Behavior.Folder,
                defaultValue=DEFAULT_MODEL,
                # Optional for the same reason as the CRS below: QGIS 3.22 asks for it in spite of its default.
                optional=True,
            ),
            "Name of a model that came with the plugin (cpcrw), or a folder with manifest.json, the .onnx files "
            "and SHA256SUMS.",
        )
        self.add(
            QgsProcessingParameterRasterLayer(self.DEM, self.tr("Digital elevation model"), optional=True),
            "Raster file with elevations in metres in its first band. Models that derive terrain need it.",
        )
        self.add(
            QgsProcessingParameterMultipleLayers(
                self.LAYERS,
                self.tr("Further rasters, matched by name"),
                QgsProcessing.SourceType.TypeRaster,
                optional=True,
            ),
            "The model's other inputs, such as NLCD land cover. Each is recognised by its name; extra layers are "
            "left aside.",
        )
        self.add(
            QgsProcessingParameterFeatureSource(
                self.AOI, self.tr("Area of interest"), [QgsProcessing.SourceType.TypeVectorPolygon], optional=True
            ),
            "Polygons in any CRS, all or the selected ones. Without it, everything that the inputs cover is predicted.",
        )

    def _add_settings(self) -> None:
        number, double = QgsProcessingParameterNumber, QgsProcessingParameterNumber.Type.Double
        self.add(
            QgsProcessingParameterEnum(
                self.WHICH,
                self.tr("Models"),
                [self.tr("MISO"), self.tr("Random Forest")],
                allowMultiple=True,
                defaultValue=[0, 1],
            ),
            "Which models to run. The comparison needs both.",
        )
        self.add(
            number(self.THRESHOLD, self.tr("Threshold of the comparison"), double, 0.5, False, 0.001, 0.999),
            "Probability from which permafrost counts as present in the layer of agreement.",
        )
        self.add(
            # Optional, because QGIS 3.22 ignores the default value of a CRS or file that is required.
            QgsProcessingParameterCrs(self.CRS, self.tr("Target CRS"), defaultValue=DEFAULT_CRS, optional=True),
            "CRS of the results, in metres. Alaska Albers by default.",
            advanced=True,
        )
        self.add(
            number(self.RESOLUTION, self.tr("Pixel size (m)"), double, 10.0, False, 0.1, 10_000.0),
            "Pixel size of the results. MISO predicts at the size it was trained at (10 m) only; Random Forest "
            "takes others.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterBoolean(self.PERCENT, self.tr("Write whole percent"), defaultValue=False),
            "Writes probabilities as uint8 from 0 to 100 with nodata 255: a quarter of the size, less exact.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterEnum(
                self.PROVIDER,
                self.tr("Compute on"),
                [self.tr("Fastest that works"), self.tr("CPU"), self.tr("NVIDIA GPU (CUDA)")],
                defaultValue=0,
            ),
            "What computes. The GPU needs the GPU packages (Set up engine); the summary says what ran.",
            advanced=True,
        )

    def prepareAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Resolve layers in the main thread, match them, and report everything that is wrong at once."""
        self._model = model_folder(self.parameterAsString(parameters, self.MODEL, context) or DEFAULT_MODEL)
        self._models = [MODELS[i] for i in sorted(self.parameterAsEnums(parameters, self.WHICH, context))]
        if not self._models:
            raise QgsProcessingException(self.tr("Models: none is chosen. Choose MISO, Random Forest, or both."))
        try:
            manifest = read_model(self._model)
        except MisoError as error:
            raise as_exception(error) from error
        dem = self.parameterAsRasterLayer(parameters, self.DEM, context)
        layers = self.parameterAsLayerList(parameters, self.LAYERS, context) or []
        match = match_inputs(manifest.inputs, dem, layers)
        self._manifest = manifest
        problems = [*model_problems(manifest, self._models), *match.problems]
        if problems:
            raise problems_exception(problems)
        for name, layer in match.layers.items():
            source = match.sources[name]
            feedback.pushInfo(f'Input {name}: layer "{layer}", {source.path}, band {source.band}')
        for layer in match.unused:
            feedback.pushInfo(f'Layer "{layer}" is no input of this model and is not used.')
        if manifest.comparison:
            feedback.pushInfo(manifest.comparison)
        if manifest.simulated:
            feedback.pushWarning(self.tr("The model was trained on simulated data: its maps are not for decisions."))
        self._sources = match.sources
        return True

    def processAlgorithm(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Dict[str, Any]:
        """Run the engine."""
        percent = self.parameterAsBoolean(parameters, self.PERCENT, context)
        threshold = self.parameterAsDouble(parameters, self.THRESHOLD, context)
        paths = self._output_paths(parameters, context, feedback)
        problems = output_problems(paths, {name: source.path for name, source in self._sources.items()})
        if problems:
            raise problems_exception(problems)
        area = self.parameterAsSource(parameters, self.AOI, context)
        with TemporaryDirectory(prefix="miso_") as scratch:
            job = PredictJob(
                model=str(self._model),
                inputs=self._sources,
                output_dir=scratch,  # receives what nobody asked for
                outputs=paths,
                aoi=self._area_file(area, parameters, Path(scratch)),
                aoi_name=area.sourceName() if area else None,
                crs=crs_text(self.parameterAsCrs(parameters, self.CRS, context)) or DEFAULT_CRS,
                resolution_m=self.parameterAsDouble(parameters, self.RESOLUTION, context),
                models=tuple(self._models),
                threshold=threshold,
                percent=percent,
                provider=PROVIDERS[self.parameterAsEnum(parameters, self.PROVIDER, context)],
            )
            self.run_engine(job, paths.values(), feedback)
        text = threshold_text(threshold, threshold)
        self.finish_layers(result_layers(paths, text, percent, self._manifest.simulated), context)
        return {self.OUTPUTS[key]: path for key, path in paths.items()}

    def _output_paths(
        self, parameters: Dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Dict[str, str]:
        possible = result_keys(self._manifest, self._models)
        paths: Dict[str, str] = {}
        for key, name in self.OUTPUTS.items():
            if key != SUMMARY and key not in possible:
                # Resolving the parameter would make Processing wait for a file that nobody writes.
                if parameters.get(name):
                    feedback.pushInfo(self.tr("{} is left out: the chosen models do not give it.").format(name))
                continue
            resolve = self.parameterAsFileOutput if key == SUMMARY else self.parameterAsOutputLayer
            path = resolve(parameters, name, context)
            if path:
                paths[key] = path
        if not paths:
            names = ", ".join(name for key, name in self.OUTPUTS.items() if key in possible)
            raise QgsProcessingException(
                self.tr("Results: none is asked for that the model gives. Choose at least one of {}.").format(names)
            )
        return paths

    def _area_file(
        self, source: Optional[QgsProcessingFeatureSource], parameters: Dict[str, Any], scratch: Path
    ) -> Optional[str]:
        if source is None:
            if parameters.get(self.AOI):
                raise QgsProcessingException(self.invalidSourceError(parameters, self.AOI))
            return None
        # Invalid polygons go to the engine as they are: it mends them, or says which one it cannot mend.
        features = source.getFeatures(
            QgsFeatureRequest().setNoAttributes(), QgsProcessingFeatureSource.Flag.FlagSkipGeometryValidityChecks
        )
        try:
            geometries = (feature.geometry() for feature in features)
            return str(write_area(geometries, source.sourceCrs(), scratch / "area.gpkg"))
        except MisoError as error:
            raise as_exception(error) from error

    def checkParameterValues(self, parameters: Dict[str, Any], context: QgsProcessingContext) -> Tuple[bool, str]:
        """Cheap checks: the target CRS is in metres."""
        crs = self.parameterAsCrs(parameters, self.CRS, context)
        if crs.isValid() and crs.isGeographic():
            return False, self.tr(
                "Target CRS {}: its unit is the degree. A projected CRS in metres is needed, such as EPSG:3338."
            ).format(crs.authid())
        return super().checkParameterValues(parameters, context)
