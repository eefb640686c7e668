"""The whole path on a sample: rasters in, maps out, by the plugin's own algorithms and QGIS's own program."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from .debian import RUN_PACKAGES, ensure_packages
from .environments import ensure_engine
from .package import assemble
from .project import BUILD, CACHE, PACKAGE, ROOT, BuildError, environment, run, say, step
from .qgis import Qgis, find_installations

OUTPUT = ROOT / "demo-output"
MAIN_RESULTS = ("nsp_probability_miso.tif", "nsp_probability_rf.tif", "nsp_disagreement.tif", "summary.json", "map.png")


def demo(output: Optional[Path] = None) -> None:
    """Prepare the sample, run terrain, predict, compare and map on it, and say where everything is."""
    output = (output or OUTPUT).absolute()
    with step("set-up"):
        ensure_packages(RUN_PACKAGES)
        qgis = find_installations(beside=False)[0]
        assemble()
        engine = ensure_engine(qgis)
    started = time.monotonic()
    shutil.rmtree(output, ignore_errors=True)
    sample = prepare_sample(engine, output / "sample")
    _run_algorithms(qgis, sample, output)
    missing = [name for name in MAIN_RESULTS if not (output / name).is_file()]
    if missing:
        raise BuildError(f"The demo ended, but {', '.join(missing)} is not in {output}.")
    _report(qgis, sample, output, time.monotonic() - started)


def prepare_sample(engine: Path, folder: Path) -> Dict[str, Any]:
    """Write the sample's rasters into ``folder``; returns its sample.json with ``folder`` added."""
    with step("sample"):
        variables = environment(PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
        run([engine, "-m", "training", "sample", "--out", folder], env=variables)
    sample: Dict[str, Any] = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    return {**sample, "folder": folder}


def sample_sentence(sample: Mapping[str, Any]) -> str:
    """Which data these are, in words."""
    return str(sample.get("source") or sample.get("sentence") or sample["kind"])


def short_sentence(sample: Mapping[str, Any]) -> str:
    """Its first sentence, which has room on the picture."""
    return sample_sentence(sample).partition(". ")[0].rstrip(".") + "."


def run_algorithm(
    qgis: Qgis, variables: Mapping[str, str], name: str, parameters: Mapping[str, object]
) -> Dict[str, Any]:
    """Run one Processing algorithm through ``qgis_process``; returns its JSON document.

    Raises:
        BuildError: If it fails; what it said is printed before.
    """
    words = [f"{key}={value}" for key, value in parameters.items()]
    done = run([qgis.process, "--json", "run", f"miso:{name}", "--", *words], env=variables, check=False, quiet=True)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        say(done.stdout[-6000:])
        raise BuildError(f"miso:{name} failed with exit code {done.returncode}; the lines above say why.")
    # Qt writes warnings around the document.
    document, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
    return dict(document)


def _run_algorithms(qgis: Qgis, sample: Mapping[str, Any], output: Path) -> None:
    scratch = CACHE / "demo-profile"
    shutil.rmtree(scratch, ignore_errors=True)
    variables = qgis.enable_plugin(scratch)
    folder: Path = sample["folder"]
    miso, rf, disagreement = (output / name for name in MAIN_RESULTS[:3])
    dem = folder / "dem.tif"
    with step("miso:terrain"):
        run_algorithm(qgis, variables, "terrain", {"DEM": dem, "OUTPUT": output / "terrain"})
    with step("miso:predict"):
        parameters = {
            "MODEL": BUILD / PACKAGE / "models" / "cpcrw",
            "DEM": dem,
            "LAYERS": folder / "nlcd.tif",
            "AOI": folder / "aoi.gpkg",
            "OUTPUT_NSP_MISO": miso,
            "OUTPUT_NSP_RF": rf,
            "OUTPUT_SUMMARY": output / "summary.json",
        }
        run_algorithm(qgis, variables, "predict", parameters)
    with step("miso:compare"):
        parameters = {"MISO": miso, "RF": rf, "OUTPUT_DISAGREEMENT": disagreement}
        parameters["OUTPUT_DIFFERENCE"] = output / "nsp_difference.tif"
        run_algorithm(qgis, variables, "compare", parameters)
    with step("miso:map"):
        parameters = {"MISO": miso, "RF": rf, "DISAGREEMENT": disagreement, "DEM": dem, "OUTPUT": output / "map.png"}
        run_algorithm(qgis, variables, "map", {**parameters, "DATA": short_sentence(sample)})


def _report(qgis: Qgis, sample: Mapping[str, Any], output: Path, seconds: float) -> None:
    say(f"\nData: {sample_sentence(sample)}")
    say(f"Computed by the plugin in QGIS {qgis.version}. Results in {output}:")
    titles = {
        "map.png": "picture of the three maps",
        "nsp_probability_miso.tif": "probability of near-surface permafrost by MISO",
        "nsp_probability_rf.tif": "the same by Random Forest",
        "nsp_disagreement.tif": "0 neither, 1 RF only, 2 MISO only, 3 both (thresholds of 0.5)",
        "nsp_difference.tif": "MISO minus Random Forest",
        "summary.json": "hectares, pixel counts, provider, seconds, versions",
        "terrain": "the seven terrain covariates",
        "sample": "the rasters that went in",
    }
    for name, title in titles.items():
        if (output / name).exists():
            say(f"  {name:<26} {title}")
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    for name, facts in summary.get("probabilities", {}).items():
        areas = (f"{hectares:.0f} ha from {threshold}" for threshold, hectares in facts["hectares_above"].items())
        say(f"  {name}: of {summary['hectares_valid']:.0f} ha, {', '.join(areas)}")
    say(f"demo: done in {seconds:.0f} s after set-up")
