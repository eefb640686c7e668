"""How fast the bundled model decodes, and that the grid decode is the exact one.

Usage: python benchmarks/decoder.py [--threads N] [--windows N]

Prints as a table and as JSON: seconds of encoder and decoder per window, decoded pixels per second, and the largest
difference between the graphs at full rows and the same graphs asked one query at a time. Runs in the engine's
environment.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from miso_qgis.engine.manifest import read_manifest  # noqa: E402

ROWS_PER_CALL = 16


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "cpcrw", help="model folder")
    parser.add_argument("--threads", type=int, default=1, help="threads of each session (default 1)")
    parser.add_argument("--windows", type=int, default=3, help="windows to time (default 3)")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.model)
    window = manifest.window
    encoder, decoder = (session(arguments.model / f"{n}.onnx", arguments.threads) for n in ("encoder", "decoder"))
    generator = np.random.default_rng(0)
    raw = {
        group.name: np.stack(
            [generator.uniform(*channel.range, (window.size_px, window.size_px)) for channel in group.channels]
        )[None].astype(np.float32)
        for group in manifest.groups
    }
    names = [output.name for output in encoder.get_outputs()]
    margin = (window.size_px - window.decode_px) // 2
    at = np.arange(margin, margin + window.decode_px, dtype=np.float32) + 0.5
    encode_s, decode_s = [], []
    for _ in range(arguments.windows + 1):
        start = time.perf_counter()
        maps = dict(zip(names, encoder.run(None, raw)))
        middle = time.perf_counter()
        parts = [
            decoder.run(["nsp"], {"rows": at[i : i + ROWS_PER_CALL], "columns": at, **maps})[0]
            for i in range(0, at.size, ROWS_PER_CALL)
        ]
        decode_s.append(time.perf_counter() - middle)
        encode_s.append(middle - start)
    grid = np.concatenate(parts, axis=2)[0, 0]
    difference = 0.0
    for row, column in generator.integers(0, at.size, (20, 2)):
        one = {"rows": at[row : row + 1], "columns": at[column : column + 1], **maps}
        difference = max(difference, abs(float(decoder.run(["nsp"], one)[0].squeeze()) - float(grid[row, column])))
    encoding, decoding = float(np.median(encode_s[1:])), float(np.median(decode_s[1:]))
    covered = window.stride_px**2  # what a window adds to the map
    result = {
        "threads": arguments.threads,
        "encoder_s_per_window": round(encoding, 3),
        "decoder_s_per_window": round(decoding, 3),
        "decoded_kpx_per_s": round(window.decode_px**2 / decoding / 1e3, 1),
        "map_kpx_per_s": round(covered / (encoding + decoding) / 1e3, 1),
        "grid_against_single_queries": difference,
    }
    for name, value in result.items():
        print(f"{name:32} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
