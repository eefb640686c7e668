"""Link the assembled plugin into a QGIS profile, for trying it by hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .package import assemble
from .project import PACKAGE, BuildError, say


def profiles_folder() -> Path:
    """Where QGIS keeps the user's profiles on this system."""
    if sys.platform == "win32":
        return Path(os.environ["APPDATA"]) / "QGIS" / "QGIS3" / "profiles"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "QGIS" / "QGIS3" / "profiles"
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "QGIS" / "QGIS3" / "profiles"


def link(profile: str) -> Path:
    """Make the profile's plugin folder point to ``build/miso_qgis``. Returns the link.

    Args:
        profile: A profile's name, or the path of its folder.

    Raises:
        BuildError: If something that is not a link of ours is in its place.
    """
    named = Path(profile)
    folder = named if named.is_absolute() else profiles_folder() / profile
    place = folder / "python" / "plugins" / PACKAGE
    built = assemble()
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        raise BuildError(
            f"{place} is an installed plugin, not a link. Uninstall it in QGIS first, or name another profile."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(built, target_is_directory=True)
    say(f"{place} -> {built}")
    say(
        "Turn the plugin on in QGIS: Plugins > Manage and Install Plugins. After changes: `python3 build.py dev` again."
    )
    return place
