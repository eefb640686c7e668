"""The Processing provider: one list of the algorithms."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms.compare import CompareAlgorithm
from .algorithms.predict import PredictAlgorithm
from .algorithms.results_map import ResultsMapAlgorithm
from .algorithms.setup_engine import SetUpEngineAlgorithm
from .algorithms.terrain import TerrainAlgorithm
from .application.folders import PLUGIN_FOLDER

ALGORITHMS = (SetUpEngineAlgorithm, TerrainAlgorithm, PredictAlgorithm, CompareAlgorithm, ResultsMapAlgorithm)


class MisoProvider(QgsProcessingProvider):
    """Provider ``miso``. Whoever adds it to the registry keeps a reference, or its algorithms vanish."""

    def id(self) -> str:
        """Stable id, never translated."""
        return "miso"

    def name(self) -> str:
        """Name in the toolbox."""
        return "MISO"

    def icon(self) -> QIcon:
        """The plugin's icon."""
        return QIcon(str(PLUGIN_FOLDER / "resources" / "icon.svg"))

    def loadAlgorithms(self) -> None:
        """Add the algorithms."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())
