"""What the algorithms of this provider share: texts, help, running the engine, styling what it wrote."""

from __future__ import annotations

from typing import Iterable, List, Sequence, Tuple

from qgis.core import (
    QgsApplication,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
)
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtGui import QIcon

from ..application.engine_client import run_job
from ..application.engine_environment import engine_command, engine_status
from ..application.folders import PLUGIN_FOLDER
from ..application.jobs import ResultLayer, make_folders
from ..application.styling import keep_styler, write_style_beside
from ..engine.errors import MisoError, Problem
from ..engine.messages import Job, Result


class MisoAlgorithm(QgsProcessingAlgorithm):
    """Base of the provider's algorithms. Subclasses say what they are in class attributes and texts in methods."""

    NAME = ""
    TITLE = ""
    BRIEF = ""
    TAGS: Tuple[str, ...] = ()
    NEEDS_ENGINE = True

    def name(self) -> str:
        """Stable id, never translated."""
        return self.NAME

    def displayName(self) -> str:
        """Name in the toolbox."""
        return self.tr(self.TITLE)

    def shortDescription(self) -> str:
        """One sentence for the tool tip."""
        return self.tr(self.BRIEF)

    def help_paragraphs(self) -> List[str]:
        """Return the help's paragraphs, plain text."""
        return [self.BRIEF]

    def shortHelpString(self) -> str:
        """Help as HTML for the dialog and as plain text for a terminal."""
        paragraphs = [self.tr(text) for text in self.help_paragraphs()]
        if QgsApplication.platform() == "desktop":
            return "".join(f"<p>{text}</p>" for text in paragraphs)
        # qgis_process prints the short description first, which is the first paragraph.
        return "\n\n".join(paragraphs[1:] or paragraphs)

    def tags(self) -> List[str]:
        """Words to find it by."""
        return ["miso", "permafrost", "soil", "alaska", *self.TAGS]

    def icon(self) -> QIcon:
        """The plugin's icon."""
        return QIcon(str(PLUGIN_FOLDER / "resources" / "icon.svg"))

    def createInstance(self) -> QgsProcessingAlgorithm:
        """Return a new object of the same kind."""
        return type(self)()

    def tr(self, text: str) -> str:
        """Translate a text of the plugin."""
        return QCoreApplication.translate("MisoAlgorithm", text)

    def canExecute(self) -> Tuple[bool, str]:
        """Say whether the engine is there, and how to get it."""
        if not self.NEEDS_ENGINE:
            return True, ""
        status = engine_status()
        return status.ready, "" if status.ready else status.text

    def add(
        self, parameter: QgsProcessingParameterDefinition, help_text: str, advanced: bool = False, output: bool = True
    ) -> None:
        """Add a parameter with its help."""
        parameter.setHelp(self.tr(help_text))
        if advanced:
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.Flag.FlagAdvanced)
        self.addParameter(parameter, output)

    def run_engine(self, job: Job, results: Iterable[str], feedback: QgsProcessingFeedback) -> Result:
        """Run a job that writes ``results``; every error becomes the exception that Processing shows.

        Raises:
            QgsProcessingException: If there is no result, also after Cancel: returning would report files that are
                not there.
        """
        try:
            make_folders(results)
            return run_job(engine_command(), job, feedback)
        except MisoError as error:
            raise as_exception(error) from error

    def finish_layers(self, layers: Sequence[ResultLayer], context: QgsProcessingContext) -> None:
        """Write a style file beside each result, and style the layers that Processing will load."""
        for layer in layers:
            write_style_beside(layer.path, layer.style)
            if context.willLoadLayerOnCompletion(str(layer.path)):
                details = context.layerToLoadOnCompletionDetails(str(layer.path))
                details.setPostProcessor(keep_styler(layer.name, layer.style))


def as_exception(error: MisoError) -> QgsProcessingException:
    """Turn an error into Processing's, one problem per line."""
    return problems_exception(error.problems)


def problems_exception(problems: Sequence[Problem]) -> QgsProcessingException:
    """Return one exception that names all problems."""
    return QgsProcessingException("\n".join(str(problem) for problem in problems))
