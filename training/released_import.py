"""From a checkpoint of the released code to a model folder that the engine runs: graphs, manifest, card, digests.

The folder appears under its name only when everything in it has been checked: the graphs answer what the network
answers, and the engine accepts the files.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from miso_qgis.engine.errors import InputError, RuntimeFailure
from miso_qgis.engine.graphs import LARGEST_BYTES
from miso_qgis.engine.manifest import FORMAT, Manifest, TaskSpec, TerrainSpec, WindowSpec, write_manifest
from miso_qgis.engine.session import read_model_files

from .bundle import write_sums
from .export import export, map_names
from .released import ReleasedMiso
from .released_inputs import RESOLUTION_M, WINDOW_PX, manifest_groups, manifest_inputs
from .released_load import load_released
from .released_state import read_state
from .sites import CLASSES, outputs

# Context of 29 px all around and a blend over 32 px, as our own models have.
STRIDE_PX, DECODE_PX = 160, 192
# Mean and standard deviation of the position index at radius 1 and 4, metres: a Copernicus DEM of the foothills near
# Healy, warped to 10 m. Those of the training rasters are not in a checkpoint; one standard deviation of the channel is
# 0.4 % of what the network's input spans, so little hangs on them.
TPI_STATISTICS = (0.0, 0.118, 0.001, 0.272)
CITATION = (
    "Lin, Chen et al., Fine-Scale Soil Mapping in Alaska with Multimodal Machine Learning, arXiv:2506.17302; weights: "
    "see the checkpoint's own source."
)
# How far the written graphs may be from the network: rounding; and what half-precision storage explains.
TOLERANCES = {False: 1e-4, True: 0.01}

Note = Callable[[str], None]

_TITLES = {"nsp": "Near-surface permafrost", "soil_order": "Soil order"}
_DEFINITIONS = {
    "nsp": "permafrost within 1 m of the surface, as the field label of the training data defines it",
    "soil_order": "the soil order that a soil scientist gives the site, one of seven",
}


@dataclass(frozen=True)
class ImportSettings:
    """How a checkpoint becomes a model folder.

    Attributes:
        task: ``nsp`` or ``soil_order``; a checkpoint does not say it.
        half: Store large weights in half precision: half the size, probabilities move by about 0.001.
        licence: Of the weights, as their owner states it.
        tpi_statistics: Of the training rasters, if they are known: mean and standard deviation of the topographic
            position index at a radius of 1 and of 4 cells, metres.
    """

    task: str
    half: bool = False
    licence: str = "not stated in the checkpoint: ask its authors before passing it on"
    tpi_statistics: Optional[Tuple[float, float, float, float]] = None


def import_checkpoint(path: Path, out: Path, settings: ImportSettings, note: Note = lambda text: None) -> Manifest:
    """Make the model folder ``out`` from a released checkpoint.

    Raises:
        InputError: If the checkpoint cannot be used, does not fit the task, or ``out`` exists.
        RuntimeFailure: If the graphs do not answer what the network answers.
    """
    if settings.task not in CLASSES:
        known = ", ".join(CLASSES)
        raise InputError("Task", f'"{settings.task}" is unknown.', f"One of {known} is needed.", "Choose one.")
    if out.exists():
        remedy = "Choose another name, or remove what is there."
        raise InputError(f'Model folder "{out}"', "it exists already.", "A new folder is needed.", remedy)
    name = f'Checkpoint "{path}"'
    note(f"reading {path}")
    model = load_released(read_state(path), name, settings.task)
    _check_task(model, settings.task, name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    note(f"{parameters:,} parameters; {_depths(model)}; exporting (minutes at full size)")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        written = export([model], part, half=settings.half)
        for graph in written.values():
            if graph.stat().st_size > LARGEST_BYTES:
                found = f"{graph.name} has {graph.stat().st_size / 1e9:.1f} GB."
                needed = f"The plugin reads at most {LARGEST_BYTES / 1e9:.1f} GB."
                raise InputError(name, found, needed, "Import it with --half.")
        apart = compare(model, part, settings)
        note(f"graphs and network differ by at most {apart:.1e} on a test window")
        manifest = describe(model, out.name, settings, path, apart)
        write_manifest(manifest, part)
        card = model_card(model, manifest, settings, path, apart)
        (part / "MODEL_CARD.md").write_bytes(card.encode("utf-8"))
        write_sums(part)
        read_model_files(part, ("miso",))
        part.chmod(0o755)  # the temporary folder was private
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return manifest


def _check_task(model: ReleasedMiso, task: str, name: str) -> None:
    found, needed = model.form.outputs, outputs(task)
    if found != needed:
        fitting = [other for other in CLASSES if outputs(other) == found]
        remedy = f"Import it with --task {fitting[0]}." if fitting else "Choose another checkpoint."
        raise InputError(name, f"it has {found} output{'s'[: found != 1]}.", f"Task {task} needs {needed}.", remedy)


def _depths(model: ReleasedMiso) -> str:
    satellite = model.form.satellite
    return f"{satellite.channels} channels, {'-'.join(map(str, satellite.depths))} blocks, D = {satellite.embedding}"


def probe(generator: torch.Generator, count: int = 1) -> Dict[str, Tensor]:
    """Made-up raw windows by group, within the channels' ranges, smooth in places, a part of them missing."""
    raw = {}
    for group in manifest_groups():
        windows = []
        for channel in group.channels:
            low, high = channel.range or (0.0, 1.0)
            coarse = torch.rand(count, 1, 11, 11, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, size=(WINDOW_PX, WINDOW_PX), mode="bicubic")
            noise = 0.1 * torch.rand(count, 1, WINDOW_PX, WINDOW_PX, generator=generator)
            windows.append(low + (smooth + noise) * (high - low))
        raw[group.name] = torch.cat(windows, dim=1)
        raw[group.name][:, :, :17, 30:71] = float("nan")
    return raw


def compare(model: ReleasedMiso, folder: Path, settings: ImportSettings) -> float:
    """Largest difference of a probability between the graphs in ``folder`` and the network, point by point.

    Raises:
        RuntimeFailure: If it is more than the way of storing explains.
    """
    generator = torch.Generator().manual_seed(0)
    raw = probe(generator)
    rows, columns = torch.rand(6, generator=generator) * WINDOW_PX, torch.rand(9, generator=generator) * WINDOW_PX
    graphs = [folder / "encoder.onnx", folder / "decoder.onnx"]
    names = map_names([model])
    maps = _run(graphs[0], {name: value.numpy() for name, value in raw.items()})
    feeds = {"rows": rows.numpy(), "columns": columns.numpy(), **dict(zip(names, maps))}
    (found,) = _run(graphs[1], feeds)
    row = rows[:, None].expand(-1, columns.numel()).reshape(1, -1)
    column = columns[None, :].expand(rows.numel(), -1).reshape(1, -1)
    with torch.no_grad():
        logit = model(raw, row, column)[settings.task]
    probability = torch.sigmoid(logit) if logit.shape[-1] == 1 else torch.softmax(logit, dim=-1)
    expected = probability.reshape(1, rows.numel(), columns.numel(), -1).permute(0, 3, 1, 2).numpy()
    apart = float(np.abs(found - expected).max())
    if not apart <= TOLERANCES[settings.half]:
        remedy = "Import without --half." if settings.half else "Report this, with the checkpoint's origin."
        raise RuntimeFailure(
            "The exported graphs",
            f"differ from the network by {apart:.2g} in probability.",
            f"At most {TOLERANCES[settings.half]:g} is allowed.",
            remedy,
        )
    return apart


def _run(path: Path, feeds: Dict[str, NDArray[np.float32]]) -> List[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
    answers: List[NDArray[np.float32]] = session.run(None, feeds)
    return answers


def describe(model: ReleasedMiso, name: str, settings: ImportSettings, path: Path, apart: float) -> Manifest:
    """Make the manifest of an imported model."""
    task = settings.task
    classes = ("near-surface permafrost",) if model.form.outputs == 1 else CLASSES[task]
    return Manifest(
        format=FORMAT,
        name=name,
        title=f"{_TITLES[task]}, Alaska (imported MISO checkpoint)",
        version="imported",
        licence=settings.licence,
        citation=CITATION,
        simulated=False,
        inputs=manifest_inputs(),
        groups=manifest_groups(),
        tasks={task: TaskSpec(_TITLES[task], tuple(classes), _DEFINITIONS[task])},
        window=WindowSpec(WINDOW_PX, RESOLUTION_M, STRIDE_PX, DECODE_PX, "cosine"),
        terrain=TerrainSpec(RESOLUTION_M, settings.tpi_statistics or TPI_STATISTICS),
        trained={
            "by": "the authors' released code, elsewhere; imported, not trained, here",
            "checkpoint": path.name,
            "checkpoint_bytes": path.stat().st_size,
            "imported": datetime.now(timezone.utc).date().isoformat(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "largest_difference_of_graphs": float(f"{apart:.2g}"),
            "software": {"python": platform.python_version(), "torch": str(torch.__version__)},
        },
        limits=_limits(settings),
    )


def _limits(settings: ImportSettings) -> List[str]:
    limits = [
        "No score comes with a checkpoint: how good these probabilities are, where, and from which threshold a site "
        "should be called present, is not known here.",
        "The checkpoint does not say which observations or which fold it was trained on; agreement with observations "
        "that may have been among them proves nothing.",
        "Trained on the AKVEG midsummer composite of Sentinel-2 (surface reflectance, median of 2019-2023), a 10 m "
        "terrain model of airborne radar, and PRISM climate normals of 1981-2010, as the paper and its code tell; "
        "other sources are seen as other ground.",
    ]
    if settings.task == "soil_order":
        limits.append("The order of the seven outputs is taken as alphabetical; a checkpoint does not name them.")
    if settings.tpi_statistics is None:
        limits.append(
            "The statistics by which the topographic position index is standardised are not in the checkpoint; those "
            "of other Alaskan ground stand in (one standard deviation is 0.4 % of the range that the network spans)."
        )
    return limits


def model_card(model: ReleasedMiso, manifest: Manifest, settings: ImportSettings, path: Path, apart: float) -> str:
    """Write the card as Markdown: where the model came from, what was done to it, what is not known."""
    satellite, covariates = model.form.satellite, model.form.covariates
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    task = manifest.tasks[settings.task]
    statistics = manifest.terrain.tpi_statistics if manifest.terrain else TPI_STATISTICS
    lines = [
        f"# {manifest.title}",
        "",
        f"Probability of {task.definition}. Weights were trained elsewhere with the code that the authors of MISO "
        "released; here they were only put into the plugin's form.",
        "",
        "## Where it came from",
        "",
        f"- File {path.name}, {path.stat().st_size:,} bytes, SHA-256 {digest}",
        f"- Imported on {manifest.trained['imported']} by `python -m training import-released --task {settings.task}`.",
        f"- {manifest.trained['parameters']:,} parameters: a Swin V2 encoder for nine Sentinel-2 bands (first width "
        f"{satellite.channels}, blocks {'-'.join(map(str, satellite.depths))}), a Swin V1 encoder for ten covariates "
        f"({covariates.channels}, {'-'.join(map(str, covariates.depths))}), implicit functions on all stages, "
        f"embeddings of {satellite.embedding}. The geographic branch, which has no part in the answer, is left out.",
        f"- Weights are stored in {'half' if settings.half else 'single'} precision. On a made-up window the graphs "
        f"differ from the network by at most {apart:.1e} in probability.",
        "",
        "## What is not known, and where it must not be used",
        "",
        *[f"- {limit}" for limit in manifest.limits],
        "",
        "## How it answers",
        "",
        "- Conventions of the released code, with which the weights were trained, are kept: offsets and blend weights "
        "of the implicit functions with swapped axes (they differ from the paper's equation 1), windows of 250 px "
        "resized to 256 px, fixed scaling of every channel, 0 for missing pixels.",
        "- Of the terrain covariates, aspect is made from its sine and cosine inside the graph (270 on flat ground). "
        f"The position index is standardised by {', '.join(f'{value:g}' for value in statistics)} (mean and standard "
        "deviation in metres at radius 1, then 4).",
        f"- Windows are laid {STRIDE_PX} px apart, the central {DECODE_PX} px of each are used and blended. The "
        "released demo blends whole windows with other weights, so maps differ where windows disagree.",
        "- Evaluation mode: no dropout and no dropped paths.",
        "",
        "## Inputs",
        "",
        "| input | what | unit | legal range |",
        "|---|---|---|---|",
        *[
            f"| {name} | {spec.title} | {spec.unit} | {spec.range[0]:g} to {spec.range[1]:g} |"
            for name, spec in manifest.inputs.items()
            if spec.range
        ],
        "",
        f"Outputs of task {settings.task}: {', '.join(task.classes)}.",
        "",
        "## Licence and sources",
        "",
        f"Weights: {manifest.licence}. {manifest.citation}",
        "",
    ]
    return "\n".join(lines)
