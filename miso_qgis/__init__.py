"""MISO for QGIS. Imports nothing at module level, so that QGIS can always load it and say what is missing."""

from __future__ import annotations


def classFactory(iface):  # noqa: ANN001, ANN201  # reason: the name and signature that QGIS calls
    """Return the plugin object; QGIS calls this when it loads the plugin."""
    from .plugin import MisoPlugin

    return MisoPlugin(iface)
