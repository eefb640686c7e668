"""Damaged rasters (row R9): a message or values, in a child process that survives all of them."""

import subprocess
import sys
import textwrap
from pathlib import Path

import scenes

ROOT = Path(__file__).resolve().parents[2]
COUNT = 200

PROGRAM = """
import sys, warnings
from pathlib import Path
import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.errors import MisoError
from miso_qgis.engine.grid import Grid
from miso_qgis.engine.manifest import ChannelSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.progress import Silent

warnings.simplefilter("ignore")
folder, count = Path(sys.argv[1]), int(sys.argv[2])
good = (folder / "good.tif").read_bytes()
grid = Grid(CRS.from_epsg(3338), Affine(10, 0, 300005, 0, -10, 1700005), 97, 143)
inputs = {"dem": InputSpec("continuous", "Elevation", "m", (-100.0, 6500.0))}
generator = np.random.default_rng(9)
refused = read = 0
for number in range(count):
    bad = bytearray(good)
    # Half of the mutations hit the header and the directory at the end, where the structure lies.
    for _ in range(generator.integers(1, 12)):
        place = generator.integers(len(bad)) if number % 2 else generator.choice([generator.integers(16),
            len(bad) - 1 - generator.integers(400)])
        bad[place] = generator.integers(256)
    cut = len(bad) if number % 3 else generator.integers(1, len(bad))
    path = folder / "bad.tif"
    path.write_bytes(bytes(bad[:cut]))
    try:
        with ChannelStack(inputs, [ChannelSpec("dem", "dem")], None, {"dem": RasterSource(str(path))}, grid, folder,
                          Silent()) as stack:
            values = stack.read(0, 0, 97, 143)
        known = values[~np.isnan(values)]
        if not ((known >= -100) & (known <= 6500)).all():
            raise SystemExit(f"values outside the legal range came through in case {number}")
        read += 1
    except MisoError as error:
        if not error.problems[0].found:
            raise SystemExit(f"no finding in case {number}")
        refused += 1
print(refused, read)
"""


def test_damaged_rasters_are_refused_or_read_and_nothing_crashes(tmp_path):
    scenes.write_elevation(tmp_path / "good.tif", compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), str(COUNT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    refused, read = map(int, done.stdout.split())
    assert refused + read == COUNT
    assert refused > COUNT / 2
