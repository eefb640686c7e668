"""What the panel remembers between sessions. One small place, so that a newer settings API touches one file."""

from __future__ import annotations

from qgis.core import QgsSettings

_PREFIX = "miso_qgis/"


def read_setting(name: str, default: str = "") -> str:
    """Return a remembered text."""
    return str(QgsSettings().value(_PREFIX + name, default))


def write_setting(name: str, value: str) -> None:
    """Remember a text."""
    QgsSettings().setValue(_PREFIX + name, value)
