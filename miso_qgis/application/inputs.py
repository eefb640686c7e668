"""Which layer is which input of a model: matching by name, and everything that stands in the way.

A layer is recognised by the words of its name, its file's name or a band's description: they must contain an alias of
the input, word for word ("nlcd2019_fairbanks" holds the word "nlcd"). Nothing is matched by position or by elimination:
a wrong raster in the right place gives a wrong map without any error. The engine checks values, CRS and overlap; here
is only what must be known before it starts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from osgeo import gdal
from qgis.core import QgsMapLayer, QgsRasterLayer

from ..engine.errors import Problem
from ..engine.manifest import InputSpec
from ..engine.messages import RasterSource

DEM_INPUT = "dem"
EXACT = 3  # likeness of a name that is the input's or an alias, and nothing else

_NAME_THE_BANDS = (
    "Describe the bands in the file, or save each as a file named after its input (gdal_translate -b NUMBER); the name "
    "of a file or layer counts for its first band only."
)


@dataclass(frozen=True)
class RasterBand:
    """One band of a layer as the matching sees it.

    Attributes:
        layer: The layer's name, for messages.
        source: File and band for the engine.
        names: Texts in which an alias is looked for: layer name, file name, band description.
    """

    layer: str
    source: RasterSource
    names: Tuple[str, ...]


@dataclass(frozen=True)
class InputMatch:
    """The outcome of matching: a source per input, and all problems at once."""

    sources: Dict[str, RasterSource]
    layers: Dict[str, str]
    problems: List[Problem]
    unused: List[str]


def layer_problem(layer: Optional[QgsMapLayer]) -> Optional[Problem]:
    """Return why the engine could not read ``layer`` from its own process, or None."""
    if layer is None:
        return Problem("A layer", "it has been removed from the project.", "", "Choose another layer.")
    what = f'Layer "{layer.name()}"'
    if not isinstance(layer, QgsRasterLayer):
        return Problem(what, "it is not a raster.", "A raster file is needed.", "Choose another layer.")
    provider = layer.providerType()
    if provider != "gdal":
        return Problem(
            what,
            f"it comes from a service or a provider ({provider}) that has no file.",
            "A raster file on disk is needed, with values and not with colours.",
            "Export it with Layer > Save As… (raw data, GeoTIFF) and choose the file.",
        )
    path = source_path(layer)
    if path.startswith(("MEM:", "/vsimem/")):
        return Problem(
            what,
            "it exists only in QGIS's memory.",
            "A raster file on disk is needed, because the engine is another program.",
            "Export it with Layer > Save As… (raw data, GeoTIFF) and choose the file.",
        )
    if not layer.isValid() or (os.path.isabs(path) and not path.startswith("/vsi") and not os.path.exists(path)):
        return Problem(what, f"its file {path} cannot be opened.", "", "Restore the file, or choose another layer.")
    if layer.crs().isValid() and layer.dataProvider().crs().isValid() and layer.crs() != layer.dataProvider().crs():
        return Problem(
            what,
            f"the project gives it the CRS {layer.crs().authid() or 'custom'}, the file says "
            f"{layer.dataProvider().crs().authid() or 'another one'}.",
            "The engine reads the file, so both must agree.",
            "Write the right CRS into the file (Raster > Projections > Assign Projection), or reset the layer's CRS.",
        )
    return None


def is_simulated(path: str) -> bool:
    """Whether a result says that its model was trained on simulated data; False where it says nothing."""
    # Whether GDAL raises or returns None is a setting of the whole process, which other plugins may change.
    try:
        dataset = gdal.Open(path)
    except RuntimeError:
        return False
    return dataset is not None and dataset.GetMetadataItem("MISO_SIMULATED") == "yes"


def source_path(layer: QgsMapLayer) -> str:
    """Return the path that GDAL opens, without QGIS's own additions to it."""
    return str(layer.source()).split("|", 1)[0]


def bands_of(layer: QgsRasterLayer) -> List[RasterBand]:
    """Return a layer's bands for the matching. The layer's and the file's name count for its first band only."""
    path = source_path(layer)
    stem = os.path.splitext(os.path.basename(path))[0]
    bands = []
    for number in range(1, layer.bandCount() + 1):
        # "Band 1: nlcd" or "Band 1"; QGIS writes the first part.
        description = layer.bandName(number).partition(":")[2].strip()
        names = (layer.name(), stem, description) if number == 1 else (description,)
        bands.append(RasterBand(layer.name(), RasterSource(path, number), tuple(name for name in names if name)))
    return bands


def match_inputs(
    inputs: Mapping[str, InputSpec],
    dem: Optional[QgsRasterLayer],
    layers: Sequence[QgsMapLayer],
) -> InputMatch:
    """Match layers to a model's inputs.

    Args:
        inputs: The manifest's inputs.
        dem: The layer for the input ``dem``, whatever its name; None looks for it among ``layers``. A model without
            such an input takes it as one of ``layers``.
        layers: Further layers, matched by name.
    """
    if dem is not None and DEM_INPUT not in inputs:
        layers, dem = [dem, *layers], None
    sources: Dict[str, RasterSource] = {}
    names: Dict[str, str] = {}
    problems: List[Problem] = []
    usable: List[RasterBand] = []
    refused: List[RasterBand] = []
    for layer in layers:
        problem = layer_problem(layer)
        if problem:
            problems.append(problem)
            refused.append(RasterBand(layer.name(), RasterSource(""), (layer.name(),)))
        else:
            usable += bands_of(layer)
    if dem is not None and DEM_INPUT in inputs:
        problem = layer_problem(dem)
        if problem:
            problems.append(problem)
        else:
            sources[DEM_INPUT] = RasterSource(source_path(dem), 1)
            names[DEM_INPUT] = dem.name()
            usable = [band for band in usable if band.source != sources[DEM_INPUT]]
    wanted = {name: spec for name, spec in inputs.items() if not (name == DEM_INPUT and dem is not None)}
    found, more = match_bands(wanted, usable)
    sources.update({name: band.source for name, band in found.items()})
    names.update({name: band.layer for name, band in found.items()})
    # Where the right layer is there but cannot be used, its own problem says enough.
    problems += [more[name] for name in more if not any(likeness(name, inputs[name], band) for band in refused)]
    unused = sorted({band.layer for band in usable} - set(names.values()))
    return InputMatch(sources, names, problems, unused)


def sources_of_choice(
    inputs: Mapping[str, InputSpec], layers: Mapping[str, QgsRasterLayer]
) -> Tuple[Dict[str, RasterSource], List[Problem]]:
    """Return the band of each layer chosen for an input: the one recognised by its description, else the first.

    A band that would be two inputs is a problem: a file of several bands was chosen whose descriptions say nothing.
    """
    sources = {}
    for name, layer in layers.items():
        bands = bands_of(layer) or [RasterBand(layer.name(), RasterSource(source_path(layer)), ())]
        found = match_bands(inputs, bands)[0] if len(bands) > 1 else {}
        sources[name] = found.get(name, bands[0]).source
    problems = []
    for name, source in sources.items():
        others = [inputs[other].title for other in sources if other != name and sources[other] == source]
        if others:
            what = f'"{layers[name].name()}" band {source.band} is chosen for {" and ".join(others)} as well.'
            problems.append(Problem(inputs[name].title, what, "Each input needs a band of its own.", _NAME_THE_BANDS))
    return sources, problems


def match_bands(
    inputs: Mapping[str, InputSpec], bands: Sequence[RasterBand]
) -> Tuple[Dict[str, RasterBand], Dict[str, Problem]]:
    """Match bands to inputs by the words of their names. Returns what was found, and a problem for each other input.

    A name that holds a longer alias of another input belongs to that one: "scene_red_edge_1" holds the word "red", but
    is not the red band. No band serves two inputs.
    """
    found: Dict[str, RasterBand] = {}
    scores: Dict[str, int] = {}
    problems: Dict[str, Problem] = {}
    aliases = [{name: _longest_alias(name, spec, band) for name, spec in inputs.items()} for band in bands]
    for name, spec in inputs.items():
        scored = [
            ((score, _aliases_held(name, spec, band)), band)
            for score, band, held in ((likeness(name, spec, band), band, held) for band, held in zip(bands, aliases))
            if score == EXACT or not any(held[name] in other and held[name] != other for other in held.values())
        ]
        # "B04, red" holds two words of the red band, "B05, red edge" one: among bands that fit alike, more words win.
        (best, words) = max((score for score, _ in scored), default=(0, 0))
        matches = [band for score, band in scored if score == (best, words) and best > 0]
        if not matches:
            problems[name] = _not_recognised(name, spec, bands)
        elif len(matches) > 1:
            listed = ", ".join(f'"{band.layer}" band {band.source.band}' for band in matches)
            problems[name] = Problem(
                f"Input {name} ({spec.title})",
                f"several layers fit equally well by name: {listed}.",
                "Exactly one is needed.",
                f'Leave the others out, or rename the right one to "{name}".',
            )
        else:
            found[name], scores[name] = matches[0], best
    for name, others in _shared(found, scores).items():
        band = found.pop(name)
        problems[name] = Problem(
            f"Input {name} ({inputs[name].title})",
            f'the only layer that fits by name, "{band.layer}" band {band.source.band}, fits {" and ".join(others)} '
            "as well.",
            "A band of its own is needed for each input.",
            _NAME_THE_BANDS,
        )
    return found, problems


def _shared(found: Mapping[str, RasterBand], scores: Mapping[str, int]) -> Dict[str, List[str]]:
    """Return the inputs whose band fits another input as well or better, each with those inputs."""
    shared = {}
    for name, band in found.items():
        others = [other for other in found if other != name and found[other].source == band.source]
        if any(scores[other] >= scores[name] for other in others):
            shared[name] = others
    return shared


def _not_recognised(name: str, spec: InputSpec, bands: Sequence[RasterBand]) -> Problem:
    words = ", ".join(dict.fromkeys((name, *spec.aliases)))
    layers: Dict[str, List[RasterBand]] = {}
    for band in bands:
        layers.setdefault(band.layer, []).append(band)
    listed, unnamed = [], False
    for layer, own in sorted(layers.items()):
        nameless = sum(not band.names for band in own)
        unnamed = unnamed or nameless > 0
        text = f" ({len(own)} bands, {nameless} of them without a description)" if nameless else ""
        listed.append(f'"{layer}"{text}')
    return Problem(
        f"Input {name} ({spec.title})",
        f"no layer was recognised by its name{'; the layers are: ' + ', '.join(listed) if listed else ''}.",
        f"A layer whose name, file name or band description contains one of these words is needed: {words}.",
        _NAME_THE_BANDS if unnamed else "Add such a layer, or rename the right one.",
    )


def likeness(name: str, spec: InputSpec, band: RasterBand) -> int:
    """Return how well a band fits an input: 3 named exactly so, 2 has the input's own word, 1 has an alias, 0 not."""
    aliases = [words_of(alias) for alias in (name, *spec.aliases)]
    score = 0
    for text in band.names:
        words = words_of(text)
        if "".join(words) in ["".join(alias) for alias in aliases]:
            score = max(score, EXACT)
        elif _contains(words, aliases[0]):
            score = max(score, 2)
        elif any(_contains(words, alias) for alias in aliases[1:]):
            score = max(score, 1)
    return score


def _longest_alias(name: str, spec: InputSpec, band: RasterBand) -> str:
    """Return the longest alias of an input that a band's names hold, its words written together; "" without one."""
    texts = [words_of(text) for text in band.names]
    aliases = [words_of(alias) for alias in (name, *spec.aliases)]
    held = ["".join(alias) for alias in aliases if any(_contains(words, alias) for words in texts)]
    return max(held, key=len, default="")


def _aliases_held(name: str, spec: InputSpec, band: RasterBand) -> int:
    """Return how many of an input's different aliases a band's names hold."""
    texts = [words_of(text) for text in band.names]
    aliases = {words_of(alias) for alias in (name, *spec.aliases)}
    return sum(any(_contains(words, alias) for words in texts) for alias in aliases)


def words_of(text: str) -> Tuple[str, ...]:
    """Split a name into lower-case words: "NLCDLandCover_2016 (AK)" -> nlcd, land, cover, 2016, ak."""
    words: List[str] = []
    before = " "
    for here, after in zip(text, text[1:] + " "):
        if here.isalnum():
            joins = before.isalpha() == here.isalpha() and before.isalnum()
            starts = here.isupper() and (before.islower() or (before.isupper() and after.islower()))
            if joins and not starts:
                words[-1] += here.lower()
            else:
                words.append(here.lower())
        before = here
    return tuple(words)


def _contains(words: Tuple[str, ...], part: Tuple[str, ...]) -> bool:
    # "landcover", "land_cover" and "LandCover" are the same words written together or apart.
    joined = "".join(part)
    spans = (words[i : i + n] for n in range(1, 5) for i in range(len(words) - n + 1))
    return bool(part) and any("".join(span) == joined for span in spans)
