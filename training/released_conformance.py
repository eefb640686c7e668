"""Vectors that the released code produced, answered by our own code: how far apart are they?

A file holds either a network's weights, inputs and outputs (``weights/...``, ``input/...``, ``output/...``) or a raw
window and what the released preprocessing makes of it (``raw_satellite``, ``raw_covariates``, ...). Sizes come from
the weights. Stage features may be stored whole or every fourth place, a preprocessed window every fourth or fifth.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miso_qgis.engine.errors import InputError

from .implicit import ImplicitFunction
from .released import ReleasedMiso
from .released_inputs import BANDS, COVARIATES, IMAGE_PX, SATELLITE, VARIABLES, WINDOW_PX, Scaling
from .released_load import load_released

TOLERANCE = 1e-4
_WEIGHTS, _INPUT, _OUTPUT = "weights/", "input/", "output/"
_BRANCHES = {"sat": SATELLITE, "cov": COVARIATES}
_SATELLITE_NODATA = -32767
_COVARIATE_NODATA = -1e38  # what is below it is missing: files differ between -3e38 and -3.4e38

Arrays = Dict[str, NDArray[Any]]


class Difference(NamedTuple):
    """One output of a file.

    Attributes:
        name: As in the file.
        largest: Largest absolute difference; NaN if a number is undefined on either side.
        spread: Standard deviation of the file's values, to read ``largest`` by.
    """

    name: str
    largest: float
    spread: float

    @property
    def agrees(self) -> bool:
        """Whether the output is met."""
        return self.largest <= TOLERANCE


def conform(path: Path) -> List[Difference]:
    """Compare a file of vectors with this code, output by output.

    Raises:
        InputError: If it is no such file, or holds something that cannot be compared.
    """
    name = f'Vectors "{path}"'
    arrays = _read(path, name)
    if any(key.startswith(_WEIGHTS) for key in arrays):
        return _network(arrays, name)
    if "raw_satellite" in arrays:
        return _preprocessing(arrays, name)
    found = f"it holds {', '.join(list(arrays)[:6]) or 'nothing'}."
    raise InputError(name, found, "weights/, input/ and output/, or raw_satellite, are needed.", "Choose another file.")


def _read(path: Path, name: str) -> Arrays:
    needed, remedy = "A file that numpy.savez wrote is needed.", "Check the path, or get the file again."
    if not path.is_file():
        raise InputError(name, "there is no such file.", needed, remedy)
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        found = f"it cannot be read ({' '.join(str(error).split())[:160]})."
        raise InputError(name, found, needed, remedy) from error
    raise InputError(name, "it holds a single array.", needed, remedy)


def _wanted(arrays: Arrays, name: str, shapes: Mapping[str, Tuple[object, ...]]) -> None:
    """Check that arrays are there with as many axes as ``shapes`` says and the sizes that are numbers there."""
    for key, shape in shapes.items():
        have = arrays[key].shape if key in arrays else None
        found = "is not there" if have is None else f"has the shape {have}"
        fits = have is not None and len(have) == len(shape)
        if not fits or any(isinstance(want, int) and size != want for size, want in zip(have or (), shape)):
            needed = f"{key} of shape ({', '.join(map(str, shape))}) is needed."
            raise InputError(name, f"{key} {found}.", needed, "Choose a file that the released code wrote.")


def _network(arrays: Arrays, name: str) -> List[Difference]:
    channels = len(BANDS) + len(VARIABLES)
    _wanted(
        arrays,
        name,
        {
            f"{_INPUT}image_uint8": ("N", channels, IMAGE_PX, IMAGE_PX),
            f"{_INPUT}query_xy": ("N", "Q", 2),
            f"{_INPUT}geo_xy": ("N", "Q", 2),
        },
    )
    state = {key[len(_WEIGHTS) :]: torch.from_numpy(v) for key, v in arrays.items() if key.startswith(_WEIGHTS)}
    model = load_released(state, name, "task")
    image = torch.from_numpy(arrays[f"{_INPUT}image_uint8"]).float() / 255.0
    query = torch.from_numpy(arrays[f"{_INPUT}query_xy"]).float()
    geo = torch.from_numpy(arrays[f"{_INPUT}geo_xy"]).float()
    outputs = {key[len(_OUTPUT) :]: value for key, value in arrays.items() if key.startswith(_OUTPUT)}
    if not outputs:
        raise InputError(name, "it holds no output/.", "Outputs to compare are needed.", "Choose another file.")
    with torch.no_grad():
        found = _answers(model, image, query, geo)
    differences = []
    for key, expected in outputs.items():
        if key not in found:
            known = ", ".join(found)
            raise InputError(name, f"output/{key} is unknown.", f"Known are {known}.", "Choose another file.")
        differences.append(_difference(key, found[key].numpy(), expected, name, (1, 4)))
    return differences


def _answers(model: ReleasedMiso, image: Tensor, query: Tensor, geo: Tensor) -> Dict[str, Tensor]:
    """Every output that a file may hold."""
    maps = model.image_maps(image)
    x, y = query[..., 0], query[..., 1]
    answer = model.answer(maps, y, x)
    geo_embedding, geo_logits = model.locate(geo)
    found = {
        "sat_emb": answer.satellite,
        "cov_emb": answer.covariates,
        "visual_emb": answer.visual,
        "visual_pred": answer.logits,
        "pred": answer.logits,
        "geo_emb": geo_embedding,
        "geo_pred": geo_logits,
    }
    for short, group in _BRANCHES.items():
        for stage, features in enumerate(maps[group]):
            function = cast("ImplicitFunction", model.branch(group).implicit[stage])
            found[f"{short}_feature_{stage}"] = features
            found[f"implicit_{short}_{stage}"] = function(features, y, x)
    return found


def _preprocessing(arrays: Arrays, name: str) -> List[Difference]:
    side = WINDOW_PX
    shapes = {"raw_satellite": (side, side, len(BANDS)), "raw_covariates": (side, side, len(VARIABLES))}
    _wanted(arrays, name, shapes)
    windows = {
        SATELLITE: _masked(arrays, "raw_satellite", arrays["raw_satellite"] == _SATELLITE_NODATA),
        COVARIATES: _masked(arrays, "raw_covariates", arrays["raw_covariates"] < _COVARIATE_NODATA),
    }
    scaled, resized = [], []
    for group, limits in ((SATELLITE, BANDS), (COVARIATES, VARIABLES)):
        scaling = Scaling(limits)
        scaled.append(scaling.scale(windows[group]))
        resized.append(scaling.resize(scaled[-1]))
    found = {"normalised_250": torch.cat(scaled, dim=1)[0], "model_input_256": torch.cat(resized, dim=1)[0]}
    known = {*shapes, *found, "satellite_mask", "covariates_mask"}
    unknown = [key for key in arrays if key not in known]
    if unknown:
        raise InputError(name, f"{unknown[0]} is unknown.", f"Known are {', '.join(known)}.", "Choose another file.")
    differences = [
        _difference(key, value.numpy(), arrays[key], name, (1, 4, 5)) for key, value in found.items() if key in arrays
    ]
    if not differences:
        raise InputError(name, "it holds no output.", f"One of {', '.join(found)} is needed.", "Choose another file.")
    return differences


def _masked(arrays: Arrays, key: str, is_nodata: NDArray[np.bool_]) -> Tensor:
    """Raw window (1, C, H, W) float32, NaN where nodata or masked by the file."""
    mask = arrays.get(re.sub("^raw_(.*)$", r"\1_mask", key))
    raw = arrays[key].astype(np.float32)
    raw[is_nodata] = np.nan
    if mask is not None:
        raw[mask.astype(bool)] = np.nan
    return torch.from_numpy(raw).permute(2, 0, 1)[None]


def _difference(
    key: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    name: str,
    steps: Tuple[int, ...],
) -> Difference:
    """Compare, thinning the second and third axis of ``found`` by the step that gives the expected shape."""
    for step in steps:
        index = tuple(slice(None, None, step) if axis in (1, 2) else slice(None) for axis in range(found.ndim))
        thinned = found[index]
        if thinned.shape == expected.shape:
            largest = float(np.abs(thinned.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
            return Difference(key, largest, float(np.std(expected, dtype=np.float64)))
    found_text = f"{key} has the shape {expected.shape}"
    needed = f"{found.shape}, or that with every {' or '.join(map(str, steps[1:]))}th place, is needed."
    raise InputError(name, f"{found_text}.", needed, "Choose a file that the released code wrote.")


def table(differences: List[Difference]) -> str:
    """Lines for people: one per output, and the verdict."""
    wide = max(len(one.name) for one in differences)
    lines = [f"{'output':<{wide}}  largest difference  standard deviation"]
    for one in differences:
        verdict = "" if one.agrees else "  DIFFERS"
        lines.append(f"{one.name:<{wide}}  {one.largest:18.2e}  {one.spread:18.3g}{verdict}")
    failed = [one.name for one in differences if not one.agrees]
    if failed:
        lines.append(f"{len(failed)} of {len(differences)} outputs differ by more than {TOLERANCE:g}.")
    else:
        lines.append(f"All {len(differences)} outputs agree to {TOLERANCE:g}.")
    return "\n".join(lines)
