"""The plugin as QGIS sees it: a provider, and with a user interface one button that opens the panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import Qt

from .provider import MisoProvider

if TYPE_CHECKING:
    from qgis.gui import QgisInterface


class MisoPlugin:
    """Adds the provider and the panel to QGIS, and takes both away again. No work is done here."""

    def __init__(self, iface: Optional[QgisInterface]) -> None:  # reason: QgisInterface, or None in qgis_process
        self._iface = iface
        self.provider: Optional[MisoProvider] = None
        self.dock: Any = None
        self._action: Any = None

    def initProcessing(self) -> None:
        """Add the provider; all that qgis_process calls."""
        self.provider = MisoProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Add the provider, the panel and its button."""
        # Widgets are imported only where there is a user interface.
        from .gui.dock import MisoDock

        self.initProcessing()
        self.dock = MisoDock(self._iface.mapCanvas(), self._iface.mainWindow())
        self._iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
        self._action = self.dock.toggleViewAction()
        self._action.setObjectName("misoTogglePanel")
        self._action.setIcon(self.provider.icon())
        self._action.setToolTip("MISO: map near-surface permafrost")
        self._iface.addToolBarIcon(self._action)
        self._iface.addPluginToRasterMenu("MISO", self._action)
        self.dock.hide()

    def unload(self) -> None:
        """Undo everything that was added."""
        if self._action is not None:
            self._iface.removePluginRasterMenu("MISO", self._action)
            self._iface.removeToolBarIcon(self._action)
            self._action = None
        if self.dock is not None:
            self.dock.close_down()
            self._iface.removeDockWidget(self.dock)
            self.dock.deleteLater()
            self.dock = None
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
