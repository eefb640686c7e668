"""Where the plugin's own files lie. Nothing is written into these folders."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import List

# Not resolved: a development link must keep pointing into the assembled folder, which also holds models/.
PLUGIN_FOLDER = Path(__file__).absolute().parent.parent
STYLES_FOLDER = PLUGIN_FOLDER / "resources" / "styles"
LOCKS_FOLDER = PLUGIN_FOLDER / "resources" / "requirements"
MODELS_FOLDER = PLUGIN_FOLDER / "models"
LAUNCHER = PLUGIN_FOLDER / "engine" / "launch.py"
DEFAULT_MODEL = "cpcrw"


def plugin_version() -> str:
    """Return the version in metadata.txt, the only place where it is written; ``0`` if that file is missing."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(PLUGIN_FOLDER / "metadata.txt", encoding="utf-8")
    return parser.get("general", "version", fallback="0")


def bundled_models() -> List[Path]:
    """Return the model folders that came with the plugin, by name, the default model first."""
    found = [path.parent for path in MODELS_FOLDER.glob("*/manifest.json")]
    return sorted(found, key=lambda folder: (folder.name != DEFAULT_MODEL, folder.name))


def model_folder(text: str) -> Path:
    """Return the folder that ``text`` names: a bundled model's name, or a path."""
    bundled = MODELS_FOLDER / text
    return bundled if text and not Path(text).is_absolute() and bundled.is_dir() else Path(text)
