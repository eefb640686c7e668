"""What this engine is made of, and whether a model runs in it."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Tuple

import onnxruntime
import rasterio

from .messages import ProbeJob, Result
from .progress import Progress
from .session import default_threads, load_model

_PACKAGES = ("numpy", "scipy", "rasterio", "onnxruntime", "onnxruntime-gpu", "pyogrio", "shapely", "numba")


def plugin_version() -> str:
    """Return the version of ``metadata.txt``, the only place where it is written; "unknown" if there is none."""
    here = Path(__file__).resolve()
    for folder in here.parents[1:3]:  # the built plugin holds it; in the sources it lies one folder higher
        path = folder / "metadata.txt"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "version":
                    return value.strip()
    return "unknown"


def software_versions() -> Dict[str, str]:
    """Return the version of everything that takes part in a run, by name."""
    versions = {"miso_qgis": plugin_version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    versions["gdal"] = rasterio.__gdal_version__
    versions["system"] = platform.platform()
    return versions


def probe(job: ProbeJob, progress: Progress) -> Result:
    """Report versions and execution providers; with a model, check its folder and run it once.

    Raises:
        ModelFolderError, RuntimeFailure, InputError: As :func:`~miso_qgis.engine.session.load_model` does.
    """
    summary: Dict[str, Any] = {
        "versions": software_versions(),
        "providers_available": list(onnxruntime.get_available_providers()),
        "threads": default_threads(),
    }
    if job.model is not None:
        progress.report(0, 1, "Checking the model")
        started = time.perf_counter()
        model = load_model(Path(job.model), job.provider, _models(Path(job.model)))
        summary["model"] = {
            "name": model.manifest.name,
            "title": model.manifest.title,
            "version": model.manifest.version,
            "digest": model.files.digest,
            "provider": model.provider,
            "provider_reason": model.provider_reason,
            "seconds": round(time.perf_counter() - started, 3),
        }
        progress.report(1, 1, "The model runs")
    return Result({}, summary)


def _models(folder: Path) -> Tuple[str, ...]:
    """Return what a folder holds, so that a model without a forest can be probed as well."""
    return ("miso", "rf") if any(folder.glob("rf_*.onnx")) else ("miso",)
