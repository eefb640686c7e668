"""Peak memory and speed of a whole prediction by size of the area; a table on stderr, JSON on stdout.

    python benchmarks/memory.py --model models/cpcrw --sizes 2000 4000 8000

Each size runs in a process of its own, so that its peak is its own (VmHWM of /proc, hence on Linux only). Inputs are
synthetic: hills at every scale and land cover in patches, 10 m. With ``--share`` below 1 only that share of the area,
scattered in patches, has data: the walk, the strips and the files are those of the whole area, while most windows are
skipped, so that memory can be measured without waiting for every window.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from miso_qgis.engine.messages import PredictJob, RasterSource  # noqa: E402  # reason: found only once the path is set
from miso_qgis.engine.predict import predict  # noqa: E402
from miso_qgis.engine.progress import Silent  # noqa: E402

PATCH_PX = 400
CODES = np.array([41, 42, 43, 52, 90], np.uint8)


def make_inputs(folder, size, share):
    """Write dem.tif and nlcd.tif strip by strip, so that making them needs little memory as well."""
    transform = Affine(10, 0, 200_005, 0, -10, 1_900_005)
    common = {"driver": "GTiff", "count": 1, "crs": "EPSG:3338", "transform": transform, "compress": "deflate"}
    common.update(height=size, width=size, tiled=True)
    generator = np.random.default_rng(3)
    x = np.arange(size)
    with (
        rasterio.open(folder / "dem.tif", "w", dtype="float32", nodata=-9999.0, **common) as dem,
        rasterio.open(folder / "nlcd.tif", "w", dtype="uint8", nodata=0, **common) as nlcd,
    ):
        for row in range(0, size, PATCH_PX):
            height = min(PATCH_PX, size - row)
            y = np.arange(row, row + height)[:, None]
            relief = sum(250 / n * np.sin(x / (310 / n) + n) * np.cos(y / (270 / n) - 2 * n) for n in (1, 2, 4, 8))
            window = Window(0, row, size, height)
            dem.write((600 + relief).astype(np.float32), 1, window=window)
            patches = -(-size // PATCH_PX)
            codes = CODES[generator.integers(len(CODES), size=patches)]
            codes[generator.random(patches) >= share] = 0
            strip = np.repeat(codes, PATCH_PX)[:size]
            nlcd.write(np.broadcast_to(strip, (height, size)), 1, window=window)


def measure(model, folder, output):
    """Run one prediction in this process and return its figures."""
    inputs = {name: RasterSource(str(folder / f"{name}.tif")) for name in ("dem", "nlcd")}
    started = time.perf_counter()
    result = predict(PredictJob(str(model), inputs, str(output), provider="cpu"), Silent())
    # Not ru_maxrss, which a child inherits from the process that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    summary = result.summary
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_predicting": summary["seconds_predicting"],
        "in_runtime": round(summary["seconds_in_runtime"] / summary["seconds_predicting"], 3),
        "valid_mpx": round(summary["pixels"]["valid"] / 1e6, 2),
        "threads": summary["threads"],
        "peak_mb": round(int(status["VmHWM"].split()[0]) / 1024),
    }


def measured(model, size, share):
    """Make inputs and measure, each in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        this = [sys.executable, __file__]
        subprocess.run([*this, "--make", str(folder), str(size), str(share)], check=True)
        command = [*this, "--measure", str(model), str(folder), str(folder / "out")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return {"size_px": size, "mpx": size * size / 1e6, **json.loads(done.stdout)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "cpcrw"), help="model folder (default: bundled)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 8000], help="side of the square area, pixels")
    parser.add_argument("--share", type=float, default=1.0, help="share of the area that has data (default: all)")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        folder, size, share = arguments.make
        make_inputs(Path(folder), int(size), float(share))
        return
    if arguments.measure:
        print(json.dumps(measure(*map(Path, arguments.measure))))
        return
    rows = []
    print("    size     Mpx  valid Mpx  seconds  runtime share  peak MB", file=sys.stderr)
    for size in arguments.sizes:
        row = measured(Path(arguments.model), size, arguments.share)
        rows.append(row)
        text = f"{size:8d}{row['mpx']:8.1f}{row['valid_mpx']:11.2f}{row['seconds']:9.1f}{row['in_runtime']:15.3f}"
        print(f"{text}{row['peak_mb']:9d}", file=sys.stderr)
    slope = (rows[-1]["peak_mb"] - rows[0]["peak_mb"]) / max(rows[-1]["mpx"] - rows[0]["mpx"], 1e-9)
    print(f"slope {slope:.2f} MB/Mpx", file=sys.stderr)
    report = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "slope_mb_per_mpx": slope,
        "runs": rows,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
