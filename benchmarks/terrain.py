"""Time and peak memory of the terrain covariates by size of the DEM; a table on stderr, JSON on stdout.

    python benchmarks/terrain.py --sizes 1000 2000 5000

Each size runs in a process of its own, so that its peak memory is its own (read from /proc, hence on Linux only). The
DEM is synthetic: hills and valleys at every scale, 10 m cells, written by a process that does nothing else.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from miso_qgis.engine.messages import RasterSource  # noqa: E402  # reason: found only once the path is set
from miso_qgis.engine.progress import Silent  # noqa: E402
from miso_qgis.engine.terrain import write_terrain  # noqa: E402


class Timed(Silent):
    """Notes when each stage has ended."""

    def __init__(self):
        self.started = time.perf_counter()
        self.stages = {}

    def report(self, done, total, text=""):
        self.stages[text] = round(time.perf_counter() - self.started, 2)


def make_dem(path, size):
    """Filter noise to a power law, as relief has it, and scale it to 1200 m per 40 km."""
    generator = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1.0
    spectrum = (generator.normal(size=frequency.shape) + 1j * generator.normal(size=frequency.shape)) * frequency**-2.2
    spectrum[0, 0] = 0.0
    z = np.fft.irfft2(spectrum, s=(size, size))
    z = (z - z.min()) / (z.max() - z.min()) * 1200.0 * (size / 4000.0) ** 0.5 + 100.0
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:3338", "nodata": -9999.0, "tiled": True}
    transform = Affine(10, 0, 0, 0, -10, 2_000_000)
    with rasterio.open(path, "w", height=size, width=size, transform=transform, **profile) as dataset:
        dataset.write(z.astype(np.float32), 1)


def measure(path, folder):
    progress = Timed()
    write_terrain(RasterSource(str(path)), folder, progress)
    seconds = time.perf_counter() - progress.started
    # Not ru_maxrss, which a child inherits from the process that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    written = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "seconds": round(seconds, 2),
        "peak_mb": round(int(status["VmHWM"].split()[0]) / 1024),
        "written_mb": round(written / 1e6),
        "stage_ends_s": progress.stages,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 2000, 5000], help="side of the square DEM, pixels"
    )
    parser.add_argument("--make", nargs=2, metavar=("PATH", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("PATH", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_dem(Path(arguments.make[0]), int(arguments.make[1]))
        return
    if arguments.measure:
        print(json.dumps(measure(*map(Path, arguments.measure))))
        return
    rows = []
    print("    size     Mpx  seconds   s/Mpx  peak MB", file=sys.stderr)
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            dem = Path(folder) / "dem.tif"
            this = [sys.executable, __file__]
            subprocess.run([*this, "--make", str(dem), str(size)], check=True)
            command = [*this, "--measure", str(dem), str(Path(folder) / "out")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = {"size_px": size, **json.loads(done.stdout)}
        rows.append(row)
        mpx = size * size / 1e6
        text = f"{size:8d}{mpx:8.1f}{row['seconds']:9.1f}{row['seconds'] / mpx:8.2f}{row['peak_mb']:9d}"
        print(text, file=sys.stderr)
    print(json.dumps({"python": platform.python_version(), "machine": platform.machine(), "runs": rows}, indent=1))


if __name__ == "__main__":
    main()
