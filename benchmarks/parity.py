"""Points, grid and exported graphs of our own network at its real sizes: how far apart? A table, and JSON.

    python benchmarks/parity.py --size small

The network has the paper's 19 channels (aspect as sine and cosine), both tasks, random weights with norms and biases
that matter, and is stored in single precision, so that the difference is that of the computation. The literal
evaluation at points is eq. 1 as written; the grid evaluation is the factorised one. Runs in the training environment;
half a minute of processor time at `small`, minutes and 5 GB at `paper`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training.config import SIZES, FeatureConfig, GroupConfig, ModelConfig  # noqa: E402  # reason: path is set first
from training.export import DecoderGraph, EncoderGraph, export, map_names  # noqa: E402
from training.model import Miso  # noqa: E402
from training.released_inputs import manifest_groups  # noqa: E402

TASKS = {"nsp": 1, "soil_order": 7}


def network(size):
    groups = []
    for group in manifest_groups():
        names = tuple(channel.name for channel in group.channels)
        groups.append(GroupConfig(group.name, names, tuple(FeatureConfig("value", (name,)) for name in names)))
    torch.manual_seed(0)
    model = Miso(ModelConfig(tuple(groups), SIZES[size], TASKS)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() in (2, 4):  # fresh heads answer nearly the same everywhere; logit scales stay (3 axes)
                parameter.mul_(2.0)
            elif "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = network(arguments.size)
    side = model.window_px
    raw = {group.name: torch.randn(1, len(group.channels), side, side) for group in model.config.groups}
    raw["satellite"][:, :, :40, 60:110] = float("nan")
    rows, columns = torch.rand(16) * side, torch.rand(16) * side
    row, column = (part.reshape(1, -1) for part in torch.meshgrid(rows, columns, indexing="ij"))
    with torch.no_grad():
        logits = model(raw, row, column)
        grid = DecoderGraph([model], 1.0)(rows, columns, *EncoderGraph([model])(*raw.values()))
    points = {"nsp": torch.sigmoid(logits["nsp"]), "soil_order": torch.softmax(logits["soil_order"], dim=-1)}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        paths = export([model], Path(folder), half=False)
        exported_s = time.process_time() - started
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        encoder, decoder = (onnxruntime.InferenceSession(str(paths[name])) for name in ("encoder", "decoder"))
    maps = encoder.run(None, {name: value.numpy() for name, value in raw.items()})
    feeds = {"rows": rows.numpy(), "columns": columns.numpy(), **dict(zip(map_names([model]), maps))}
    found = dict(zip(TASKS, decoder.run(list(TASKS), feeds)))
    result = {
        "size": arguments.size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "export_processor_s": round(exported_s, 1),
        "bytes": sizes,
    }
    print(f"{'task':<12} {'deviation of p':>15} {'grid - points':>15} {'graphs - points':>16}", file=sys.stderr)
    for number, task in enumerate(TASKS):
        expected = points[task].reshape(1, 16, 16, -1).permute(0, 3, 1, 2)
        deviation = float(expected.std(dim=(2, 3)).max())
        by_grid = float((grid[number] - expected).abs().max())
        by_graphs = float((torch.from_numpy(found[task]) - expected).abs().max())
        result[task] = {"deviation": deviation, "grid": by_grid, "graphs": by_graphs}
        print(f"{task:<12} {deviation:15.3f} {by_grid:15.1e} {by_graphs:16.1e}", file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
