"""Import a released-format checkpoint at full size and predict one window with it; a table on stderr, JSON on stdout.

    python benchmarks/import_released.py --task nsp --half
    python benchmarks/import_released.py --task nsp --half --qgis

With ``--qgis`` the assembled plugin (``python3 build.py package``) predicts the same area through ``qgis_process``,
from nine single bands and from one file of nine described bands; every pixel must equal the engine's own.

The checkpoint has the names and shapes of the released code at Swin-B size (212 M parameters with the tensors that are
never used) and random weights: this shows that such a file can be imported and run, in which time and memory, and
nothing about maps. Each step is a process of its own, so that its peak memory is its own. Runs in the training
environment, on Linux; minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]

import numpy as np  # noqa: E402  # reason: the project's own are found only once the path is set
import rasterio  # noqa: E402
from released_scene import BANDS, stack_bands, write_rasters  # noqa: E402

from development.project import BUILD, PACKAGE  # noqa: E402
from development.qgis import installed_qgis  # noqa: E402
from miso_qgis.engine.manifest import read_manifest  # noqa: E402

AREA_PX = 64  # one window covers it

MAKE = """
import sys
sys.path[:0] = {path!r}
import torch
from dataclasses import replace
from released_checkpoints import FULL, released_state
state = released_state(replace(FULL, outputs={outputs}), seed=1)
print(sum(value.numel() for value in state.values() if value.is_floating_point()))
torch.save({{"model": state, "epoch": 40}}, {file!r})
"""


def run(command, environment):
    """Run a command; return its output, wall-clock and processor seconds, and peak memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:4]))} ended with {process.returncode}")
    seconds = {"wall_s": time.perf_counter() - started, "processor_s": usage.ru_utime + usage.ru_stime}
    return output, {**{k: round(v, 1) for k, v in seconds.items()}, "peak_mb": round(usage.ru_maxrss / 1024)}


def seconds_and_memory(figures, summary):
    """Add what the engine's summary says of a prediction to the figures of its process."""
    return {**figures, **{name: summary[name] for name in ("pixels", "seconds", "seconds_predicting", "threads")}}


def predict_in_qgis(scratch, model, rasters, key, expected):
    """Predict through ``qgis_process``, from single bands and from one file; return the figures and what is equal.

    Peak memory is that of the largest process, which is the engine.
    """
    if not (BUILD / PACKAGE / "metadata.txt").is_file():
        raise SystemExit(f"There is no assembled plugin in {BUILD}. Run: python3 build.py package")
    qgis = installed_qgis()
    environment = qgis.enable_plugin(scratch / "profile")
    environment.update({name: os.environ[name] for name in ("MISO_QGIS_ENGINE_ENV",) if name in os.environ})
    stack = scratch / "in" / "sentinel2_summer.tif"
    stack_bands(rasters, stack)
    others = [path for name, path in rasters.items() if name not in (*BANDS, "dem")]
    sources = {"nine files": [*(rasters[name] for name in BANDS), *others], "one file of nine bands": [stack, *others]}
    steps = {}
    for title, layers in sources.items():
        out, about = scratch / f"{title}.tif", scratch / f"{title}.json"
        words = [f"MODEL={model}", f"DEM={rasters['dem']}", *(f"LAYERS={path}" for path in layers), "MODELS=0"]
        words += [f"{'OUTPUT_NSP_MISO' if key.startswith('nsp') else 'OUTPUT_SOIL_ORDER_MISO'}={out}"]
        command = [str(qgis.process), "run", "miso:predict", "--", *words, f"OUTPUT_SUMMARY={about}"]
        said, figures = run(command, environment)
        with rasterio.open(out) as first, rasterio.open(expected) as second:
            found, wanted = first.read(), second.read()
            same = first.crs == second.crs and first.transform == second.transform
        if not same or not np.array_equal(found, wanted):
            print(said, file=sys.stderr)
            raise SystemExit(f"QGIS {qgis.version} gives another map than the command line, from {title}.")
        figures = seconds_and_memory(figures, json.loads(about.read_text(encoding="utf-8")))
        valid = wanted[wanted != -9999]
        print(
            f"QGIS {qgis.version}, {title}: {found.size} values equal, {valid.size} of them valid, "
            f"{valid.min():.4f} to {valid.max():.4f}",
            file=sys.stderr,
        )
        steps[f"QGIS {qgis.version}, {title}"] = {**figures, "equal_values": found.size, "valid_values": valid.size}
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("nsp", "soil_order"), default="nsp")
    parser.add_argument("--half", action="store_true", help="store weights in half precision")
    parser.add_argument("--threads", type=int, default=2, help="threads of the import (default 2)")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the model are kept (default: nowhere)")
    parser.add_argument("--qgis", action="store_true", help="predict in QGIS as well and compare")
    arguments = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = (arguments.folder or scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        file, model = folder / "best_model.pth", folder / f"{arguments.task}{'_half' if arguments.half else ''}"
        steps = {}
        code = MAKE.format(path=sys.path[:2], outputs=1 if arguments.task == "nsp" else 7, file=str(file))
        count, steps["make checkpoint"] = run([sys.executable, "-c", code], environment)
        command = [sys.executable, "-m", "training", "import-released", str(file), "--task", arguments.task]
        command += ["--out", str(model), "--threads", str(arguments.threads), *(["--half"] if arguments.half else [])]
        said, steps["import"] = run(command, environment)
        print(said, file=sys.stderr)
        rasters = write_rasters(scratch / "in", AREA_PX, AREA_PX)
        # The engine chooses its threads, as it does for the plugin.
        command = [sys.executable, "-m", "miso_qgis.engine", "predict", "--model", str(model), "--models", "miso"]
        command += [part for name, path in rasters.items() for part in ("--input", f"{name}={path}")]
        command += ["--output", str(scratch / "out"), "--json"]
        answer, figures = run(command, environment)
        steps["command line"] = seconds_and_memory(figures, json.loads(answer)["summary"])
        if arguments.qgis:
            key = f"{arguments.task}_probability_miso"
            steps.update(predict_in_qgis(scratch, model, rasters, key, scratch / "out" / f"{key}.tif"))
        sizes = {path.name: path.stat().st_size for path in (file, model / "encoder.onnx", model / "decoder.onnx")}
        manifest = read_manifest(model)
    result = {
        "tensor_elements": int(count),
        "steps": steps,
        "bytes": sizes,
        "largest_difference_of_graphs": manifest.trained["largest_difference_of_graphs"],
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }
    for name, figures in steps.items():
        wall, busy, peak = figures["wall_s"], figures["processor_s"], figures["peak_mb"]
        print(f"{name:<36} {wall:8.1f} s  {busy:8.1f} s of processor  {peak:6d} MB", file=sys.stderr)
    for name, size in sizes.items():
        print(f"{name:<36} {size / 1e6:8.1f} MB", file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
