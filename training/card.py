"""The model card of the bundled model, from its manifest and the protocol's result."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from miso_qgis.engine.manifest import Manifest

from . import evaluate
from .bundled import Workshop

CITATION = (
    "Training data: Alter, Pradhan and Wagner, Using an observation-based map of permafrost extent to inform "
    "permafrost predictions in a large Alaskan watershed (MIT licence). Method: Lin, Chen et al., Fine-Scale Soil "
    "Mapping in Alaska with Multimodal Machine Learning, arXiv:2506.17302."
)
LIMITS = (
    "Trained on one small boreal watershed north of Fairbanks, in discontinuous permafrost, from 215 to 818 m; "
    "elsewhere its probabilities mean nothing that has been measured.",
    "Not for tundra, continuous permafrost, glaciers, coasts or developed ground: training saw none of it. Fire "
    "history is not among its inputs.",
    "Labels are samples of an observation-based map with 50 m cells: nothing finer than that is known.",
    "Land cover is the NLCD of one date; open water, barren ground, dwarf shrub and grassland were too rare to learn.",
)
SHOWN = ("roc_auc", "pr_auc", "precision_at_equal_recall_curve", "f1_half", "precision_half", "recall_half")


def write(manifest: Manifest, workshop: Workshop, result: Optional[Dict[str, Any]]) -> str:
    """Write the card as Markdown."""
    seeds = manifest.trained["member_seeds"]
    fit, pretrain, size = workshop.training.fit, workshop.training.pretrain, workshop.config.size
    lines = [
        f"# {manifest.title}",
        "",
        "Probability of near-surface permafrost (within 1 m) from terrain and land cover, by MISO at its small size, "
        "and by a Random Forest beside it. Meant for trying the plugin on ground that resembles the training area.",
        "",
        "## How good it is",
        "",
        *_figures(result, len(seeds)),
        "",
        "## Where it must not be used",
        "",
        *[f"- {limit}" for limit in manifest.limits],
        "",
        "## What it was trained on",
        "",
        f"- {manifest.trained['points']} points along random transects of the observation-based permafrost map of the "
        "Caribou-Poker Creeks Research Watershed, from its open part only (west of raster column 215).",
        "- Contrastive pretraining saw the covariates, not the labels, of the whole watershed, the reserved part "
        "included; so did the scaling of the channels.",
        "- Channels: seven terrain covariates of a 50 m DEM (aspect as sine and cosine) and NLCD classes as shares, "
        "on a 10 m grid of EPSG:3338.",
        "",
        "## How",
        "",
        f"- {len(seeds)} networks whose logits are averaged; each has two Swin V2 encoders ({size.channels} channels "
        f"in the first of {len(size.depths)} stages, tokens of {size.patch_px * size.resolution_m:.0f} m, windows of "
        f"{size.window_px * size.resolution_m / 1000:.2f} km), an implicit function per stage and modality, embeddings "
        f"of {size.embedding}.",
        "- Half of the averaged logits come from terrain alone (the same networks, their land-cover embedding left "
        "out), and training turns the sign of the sine of aspect in half of the windows, so that east- and west-facing "
        "slopes count the same: land cover and aspect are what differs most between parts of the watershed. This costs "
        "the model what difference there is between east and west.",
        f"- {pretrain.steps} steps of contrastive pretraining (modalities; visual and geographic), then {fit.steps} "
        f"steps of cross-entropy, {fit.batch} windows each; AdamW, learning rate {fit.learning_rate:g} at most, weight "
        f"decay {fit.weight_decay:g}, averaged weights; member seeds {', '.join(map(str, seeds))}.",
        "- Learning rates and lengths are the small size's own; the paper's bind its own size.",
        f"- Temperature {workshop.training.temperature:g}, chosen on held-out sectors of the development seed.",
        f"- Overlapping windows differ by {manifest.window.disagreement:.3f} on average; the largest step that "
        f"blending leaves between neighbouring pixels is {manifest.trained['largest_seam_step']:.4f}.",
        f"- Made on {manifest.trained['date']} by `python -m training bundle`.",
        "",
        "## Licence and sources",
        "",
        f"Weights: {manifest.licence}. {manifest.citation}",
        "",
    ]
    return "\n".join(lines)


def _figures(result: Optional[Dict[str, Any]], members: int) -> List[str]:
    if result is None or evaluate.MISO not in result["tables"]["blocks"]["map"]:
        return ["Not yet measured by the protocol of docs/validation.md."]
    lines = [
        "Out of fold, on all open cells of the watershed, mean over seeds with 95 % interval (docs/validation.md has "
        "the protocol and everything else). These figures come from ground next to the training points; elsewhere "
        "expect less.",
    ]
    if result["networks"] != [members]:
        counts = " or ".join(map(str, result["networks"]))
        lines += ["", f"MISO's figures are those of {counts} averaged networks; the bundled model averages {members}."]
    for split, title in evaluate.SPLIT_TITLES.items():
        table = result["tables"][split]["map"]
        lines += ["", f"**{title}**", "", "| model | " + " | ".join(evaluate.COLUMNS[name] for name in SHOWN) + " |"]
        lines.append("|---" * (len(SHOWN) + 1) + "|")
        for model, row in table.items():
            lines.append(f"| {evaluate.MODELS[model]} | " + " | ".join(_interval(row[name]) for name in SHOWN) + " |")
    return [*lines, "", *_verdicts(result)]


def _interval(entry: Mapping[str, Any]) -> str:
    return f"{entry['mean']:.3f} ({entry['low']:.3f}-{entry['high']:.3f})"


def comparison(result: Dict[str, Any]) -> str:
    """Say in one or two sentences, for the interface, how MISO compares with the bundled forest; empty if not run."""
    parts = []
    for split, words in (("blocks", "1 km blocks"), ("sector", "held-out sectors")):
        row = result["differences"][split]["map"].get("rf")
        if row is None:
            return ""
        table = result["tables"][split]["map"]
        values = f"{table[evaluate.MISO]['roc_auc']['mean']:.3f} against {table['rf']['roc_auc']['mean']:.3f}"
        parts.append(f"{_word(row['roc_auc'])} on {words} (ROC-AUC {values})")
    return f"In validation, MISO against the Random Forest beside it: {', '.join(parts)}."


def _word(entry: Mapping[str, Any]) -> str:
    return "above" if entry["low"] > 0 else "below" if entry["high"] < 0 else "level"


def _verdicts(result: Dict[str, Any]) -> List[str]:
    """Say plainly, baseline by baseline, whether MISO is above, level or below."""
    lines = ["Whether MISO beats its baselines (a difference counts only if its interval excludes 0):", ""]
    for split in ("blocks", "sector", "random"):
        for model, row in result["differences"][split]["map"].items():
            words = []
            for name in ("roc_auc", "pr_auc", "precision_at_equal_recall_curve", "f1_half"):
                entry = row[name]
                words.append(f"{evaluate.COLUMNS[name]} {_word(entry)} ({entry['mean']:+.3f})")
            lines.append(f"- {split}, against {evaluate.MODELS[model]}: {', '.join(words)}.")
    return lines
