"""Map tools that draw an area: a rectangle by dragging, a polygon by clicking.

Plain QgsMapTool with a rubber band: QgsMapToolDigitizeFeature crashes QGIS 3.40.6 when it is used from Python with a
digitizing dock of its own.
"""

from __future__ import annotations

from typing import List, Optional

from qgis.core import QgsGeometry, QgsPointXY, QgsRectangle, QgsWkbTypes
from qgis.gui import QgsMapCanvas, QgsMapMouseEvent, QgsMapTool, QgsRubberBand
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QKeyEvent

_POLYGON = QgsWkbTypes.GeometryType.PolygonGeometry
_STROKE, _FILL = QColor(230, 159, 0), QColor(230, 159, 0, 40)


def area_band(canvas: QgsMapCanvas, filled: bool = False) -> QgsRubberBand:
    """Return an empty rubber band in the colour of the area; a filled one would tint the results beneath it."""
    band = QgsRubberBand(canvas, _POLYGON)
    band.setStrokeColor(_STROKE)
    band.setFillColor(_FILL if filled else QColor(0, 0, 0, 0))
    band.setWidth(2)
    return band


class AreaTool(QgsMapTool):
    """Base of the two tools. :attr:`drawn` carries a valid polygon in the canvas's CRS."""

    drawn = pyqtSignal(QgsGeometry)

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._band = area_band(canvas, filled=True)
        self.setCursor(Qt.CursorShape.CrossCursor)

    def deactivate(self) -> None:
        """Forget a drawing that was not finished."""
        self.reset()
        super().deactivate()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Escape starts again."""
        if event.key() == Qt.Key.Key_Escape:
            self.reset()
            event.ignore()  # keeps QGIS from leaving the tool

    def reset(self) -> None:
        """Remove what is drawn."""
        self._band.reset(_POLYGON)

    def remove(self) -> None:
        """Take the rubber band off the canvas, for good."""
        scene = self.canvas().scene()
        if self._band.scene() is scene:
            scene.removeItem(self._band)

    def _finish(self, geometry: QgsGeometry) -> None:
        self.reset()
        if not geometry.isEmpty() and geometry.area() > 0:
            self.drawn.emit(geometry)


class RectangleTool(AreaTool):
    """Press, drag, release."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._corner: Optional[QgsPointXY] = None

    def reset(self) -> None:
        """Remove what is drawn."""
        self._corner = None
        super().reset()

    def canvasPressEvent(self, event: QgsMapMouseEvent) -> None:
        """The first corner."""
        if event.button() == Qt.MouseButton.LeftButton:
            self._corner = event.mapPoint()

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:
        """Show the rectangle so far."""
        if self._corner is not None:
            self._band.setToGeometry(QgsGeometry.fromRect(QgsRectangle(self._corner, event.mapPoint())), None)

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:
        """The opposite corner."""
        if self._corner is not None and event.button() == Qt.MouseButton.LeftButton:
            self._finish(QgsGeometry.fromRect(QgsRectangle(self._corner, event.mapPoint())))


class PolygonTool(AreaTool):
    """Click the corners; a right click, a double click or Enter finishes; Backspace takes the last corner back."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._points: List[QgsPointXY] = []

    def reset(self) -> None:
        """Remove what is drawn."""
        self._points = []
        super().reset()

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:
        """A corner, or the end."""
        if event.button() == Qt.MouseButton.LeftButton:
            self._points.append(event.mapPoint())
            self._show(event.mapPoint())
        elif event.button() == Qt.MouseButton.RightButton:
            self._close()

    def canvasDoubleClickEvent(self, event: QgsMapMouseEvent) -> None:
        """The end; its first click has already set the corner."""
        self._close()

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:
        """Show the polygon so far."""
        if self._points:
            self._show(event.mapPoint())

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter ends, Backspace takes a corner back, Escape starts again."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._close()
            event.ignore()
        elif event.key() in (Qt.Key.Key_Backspace, Qt.Key.Key_Delete):
            del self._points[-1:]
            if self._points:
                self._show(self._points[-1])
            else:
                self.reset()
            event.ignore()  # otherwise QGIS would delete selected features
        else:
            super().keyPressEvent(event)

    def _show(self, cursor: QgsPointXY) -> None:
        self._band.setToGeometry(QgsGeometry.fromPolygonXY([[*self._points, cursor]]), None)

    def _close(self) -> None:
        if len(self._points) < 3:
            return
        polygon = QgsGeometry.fromPolygonXY([self._points])
        # A figure of eight has no inside; its repaired parts do.
        self._finish(polygon if polygon.isGeosValid() else polygon.makeValid())
