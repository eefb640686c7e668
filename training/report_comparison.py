"""Models side by side: predictions of one task and split, brought to the same sites, scored, and paired.

Owns who is compared with whom, on which sites, and every table of numbers that the report shows for a task and split.
The *reference* is MISO where it takes part, else the first model: thresholds at equal recall and equal area aim at what
the reference has at 0.5, and differences are reference minus other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError, Problem

from . import calibration, scores
from .metrics import BOOTSTRAP_SEED, DRAWS
from .outoffold import OutOfFold
from .scores import Draws, Estimate, Judged

FloatArray = NDArray[np.float64]
Json = Dict[str, Any]

MISO, FOREST = "miso", "rf"
TITLES: Mapping[str, str] = {
    MISO: "MISO",
    FOREST: "Random Forest",
    "rf_coordinates": "Random Forest + coordinates",
    "logistic": "Logistic regression",
}
SPLIT_ORDER = ("random", "SH-1km", "SH-10km", "kNNDM", "blocks", "sector")
# The paper reads its figures off SH-1km: places that no neighbour within a kilometre has been seen of.
MAIN_SPLITS = ("SH-1km", "blocks", "SH-10km", "sector", "kNNDM", "random")
TASK_ORDER = ("nsp", "soil_order")
TASK_TITLES: Mapping[str, str] = {"nsp": "near-surface permafrost", "soil_order": "soil order"}


def title_of(model: str) -> str:
    """Return a model's name for people."""
    return TITLES.get(model, model)


@dataclass(frozen=True)
class Comparison:
    """Predictions of several models for one task and split, on the same sites in the same order.

    Attributes:
        task: Key of :data:`training.sites.CLASSES`.
        split: Name of the split.
        classes: Names of the classes.
        members: {model: {seed: predictions}}, in the order of tables.
        paired: Whether all models have the same seeds, so that differences can be formed.
        notes: What the reader must know: sites left out, seeds left out, few clusters.
    """

    task: str
    split: str
    classes: Tuple[str, ...]
    members: Dict[str, Dict[int, OutOfFold]]
    paired: bool
    notes: Tuple[str, ...]

    @property
    def reference(self) -> str:
        """The model that sets the targets."""
        return MISO if MISO in self.members else next(iter(self.members))

    @property
    def simulated(self) -> bool:
        """Whether any prediction is of simulated data."""
        return any(is_simulated(oof) for by in self.members.values() for oof in by.values())


def is_simulated(oof: OutOfFold) -> bool:
    """Say whether predictions are of invented data: ``simulated`` in the facts, or in the facts' ``dataset``."""
    dataset = oof.facts.get("dataset")
    return bool(oof.facts.get("simulated") or (isinstance(dataset, dict) and dataset.get("simulated")))


def compare(predictions: Sequence[OutOfFold]) -> List[Comparison]:
    """Group predictions by task and split and bring the models of each group to the same sites.

    Raises:
        InputError: If something is given twice, or models contradict each other about a site; all problems at once.
    """
    groups: Dict[Tuple[str, str], Dict[str, Dict[int, OutOfFold]]] = {}
    problems: List[Problem] = []
    for oof in predictions:
        by_seed = groups.setdefault((oof.task, oof.split), {}).setdefault(oof.model, {})
        if oof.seed in by_seed:
            what, remedy = f'Predictions "{oof.name}"', "Give each run once, or rename the model of one."
            problems.append(Problem(what, "are in two of the runs.", "One model, task, split and seed once.", remedy))
        by_seed[oof.seed] = oof
        if np.unique(oof.id).size != oof.id.size:
            what, remedy = f'Predictions "{oof.name}"', "Make them again with unique site identifiers."
            problems.append(Problem(what, "hold a site twice.", "Each site once.", remedy))
    if problems:
        raise InputError.of(problems)
    found = [_comparison(task, split, groups[task, split]) for task, split in sorted(groups, key=_group_order)]
    return found


def _group_order(key: Tuple[str, str]) -> Tuple[int, str, int, str]:
    task, split = key
    return _rank(task, TASK_ORDER), task, _rank(split, SPLIT_ORDER), split


def _rank(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _comparison(task: str, split: str, by_model: Mapping[str, Mapping[int, OutOfFold]]) -> Comparison:
    models = sorted(by_model, key=lambda m: (_rank(m, (FOREST, MISO)), m))
    notes: List[str] = []
    common = set.intersection(*(set(by_model[model]) for model in models))
    paired = bool(common) and len(models) > 1
    if common:
        extra = {model: sorted(set(by_model[model]) - common) for model in models}
        left_out = "; ".join(f"{_words(seeds)} of {title_of(model)}" for model, seeds in extra.items() if seeds)
        if left_out:
            notes.append(f"Only the seeds that all models have take part. Left out: {left_out}.")
        members = {model: {seed: by_model[model][seed] for seed in sorted(common)} for model in models}
        notes += _align(members, sorted(common))
    else:
        members = {model: dict(sorted(by_model[model].items())) for model in models}
        notes.append("The models have no seed in common: their differences cannot be paired and are not shown.")
    classes = {oof.classes for by in members.values() for oof in by.values()}
    if len(classes) != 1:
        needed = "The same classes in the same order are needed."
        raise InputError(
            f"Task {task}, split {split}", "the models have different classes.", needed, "Evaluate them one by one."
        )
    return Comparison(task, split, next(iter(classes)), members, paired, tuple(notes))


def _words(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _align(members: Dict[str, Dict[int, OutOfFold]], seeds: Sequence[int]) -> List[str]:
    """Bring all models of a seed to their common sites, in place; returns notes."""
    notes: List[str] = []
    problems: List[Problem] = []
    for seed in seeds:
        ids = [by[seed].id for by in members.values()]
        common = ids[0]
        for other in ids[1:]:
            common = common[np.isin(common, other)]
        first: Optional[OutOfFold] = None
        for model, by in members.items():
            dropped = by[seed].id.size - common.size
            if dropped:
                notes.append(f"Seed {seed}: {dropped} sites of {title_of(model)} that others lack are left out.")
            order = np.argsort(by[seed].id)
            by[seed] = scores.subset(by[seed], order[np.searchsorted(by[seed].id[order], common)])
            problems += _contradictions(first, by[seed]) if first is not None else []
            if first is not None and not np.array_equal(first.fold, by[seed].fold):
                notes.append(
                    f"Seed {seed}: {title_of(model)} was held out in other folds than {title_of(first.model)}."
                )
            first = first or by[seed]
    if problems:
        raise InputError.of(problems)
    return notes


def _contradictions(first: OutOfFold, other: OutOfFold) -> List[Problem]:
    found: List[Problem] = []
    for name, words in (("label", "labels"), ("cluster", "clusters")):
        differ = int((getattr(first, name) != getattr(other, name)).sum())
        if differ:
            found.append(
                Problem(
                    f'Predictions "{first.name}" and "{other.name}"',
                    f"give {differ} of {first.id.size} common sites different {words}.",
                    "Models are compared on the same observations.",
                    "Make both from the same dataset and split.",
                )
            )
    return found


@dataclass(frozen=True)
class Assessed:
    """A comparison with its decisions and every score.

    Attributes:
        comparison: Models and sites.
        judged: {model: [one per seed]}.
        draws: The cluster draws that all models share.
        pooled: {model: {measure: estimate}}: mean over seeds of the measure on all folds' sites, with interval.
        per_seed: {model: {measure: [value per seed]}}.
        folds: {model: {measure: mean over folds}}.
        differences: {other model: {measure: reference minus other}}; empty if not paired.
        calibrated: {model: {method: {"nested": {measure: estimate}, "change": {measure: estimate}, "final": JSON,
            "reasons": [...], "predictions": [one per seed]}}}, all but ``final`` out of fold.
        notes: The comparison's notes and those on few clusters and conventions.
    """

    comparison: Comparison
    judged: Dict[str, List[Judged]]
    draws: Draws
    pooled: Dict[str, Dict[str, Estimate]]
    per_seed: Dict[str, Dict[str, List[float]]]
    folds: Dict[str, Dict[str, scores.FoldMean]]
    differences: Dict[str, Dict[str, Estimate]]
    calibrated: Dict[str, Dict[str, Json]] = field(default_factory=dict)
    notes: Tuple[str, ...] = ()


def assess(
    comparison: Comparison, recall: Optional[float] = None, draws: int = DRAWS, seed: int = BOOTSTRAP_SEED
) -> Assessed:
    """Score every model of a comparison.

    Args:
        comparison: From :func:`compare`.
        recall: Recall that the equal-recall thresholds aim at, in place of the reference's at 0.5.
        draws: Bootstrap draws.
        seed: Of the draws.
    """
    every = [oof for by in comparison.members.values() for oof in by.values()]
    drawn = scores.draw_clusters(np.concatenate([oof.cluster for oof in every]), draws, seed)
    targets = {
        number: scores.targets_of(oof, recall) for number, oof in comparison.members[comparison.reference].items()
    }
    some = next(iter(targets.values()))  # for models without a common seed
    judged = {
        model: [scores.judge(oof, targets.get(number, some)) for number, oof in by.items()]
        for model, by in comparison.members.items()
    }
    pooled, per_seed, distributions = {}, {}, {}
    for model, ones in judged.items():
        pooled[model], per_seed[model], distributions[model] = estimates(ones, drawn)
    return Assessed(
        comparison,
        judged,
        drawn,
        pooled,
        per_seed,
        {model: scores.mean_over_folds(ones) for model, ones in judged.items()},
        _differences(comparison, pooled, distributions, drawn.clusters.size) if comparison.paired else {},
        {model: _calibrated(ones, drawn, distributions[model]) for model, ones in judged.items()},
        (*comparison.notes, *_more_notes(judged, drawn)),
    )


def estimates(
    ones: Sequence[Judged], draws: Draws
) -> Tuple[Dict[str, Estimate], Dict[str, List[float]], Dict[str, FloatArray]]:
    """Return of one model's seeds: estimates (mean over seeds), values per seed, and distributions."""
    values = [scores.observed(judged) for judged in ones]
    drawn = [scores.bootstrap(judged, draws) for judged in ones]
    clusters = int(np.unique(np.concatenate([judged.oof.cluster for judged in ones])).size)
    found: Dict[str, Estimate] = {}
    distributions: Dict[str, FloatArray] = {}
    per_seed: Dict[str, List[float]] = {}
    for name in values[0]:
        per_seed[name] = [row[name] for row in values]
        distributions[name] = mean_defined(np.stack([row[name] for row in drawn]))
        why = next((scores.reason(j, name) for j, row in zip(ones, values) if not np.isfinite(row[name])), "")
        value = float(mean_defined(np.asarray(per_seed[name])[:, None])[0])
        found[name] = scores.estimate(value, distributions[name], clusters, why)
    return found, per_seed, distributions


def mean_defined(values: FloatArray) -> FloatArray:
    """Return the mean over the first axis of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of a mean of nothing, which NaN says already
        result: FloatArray = np.nanmean(values, axis=0)
    return result


def difference(
    first: Estimate, second: Estimate, distributions: Tuple[FloatArray, FloatArray], clusters: int
) -> Estimate:
    """Return first minus second with the interval of the paired draws."""
    why = first.reason or second.reason
    return scores.estimate(first.value - second.value, distributions[0] - distributions[1], clusters, why)


def _differences(
    comparison: Comparison,
    pooled: Mapping[str, Mapping[str, Estimate]],
    distributions: Mapping[str, Mapping[str, FloatArray]],
    clusters: int,
) -> Dict[str, Dict[str, Estimate]]:
    reference = comparison.reference
    return {
        model: {
            name: difference(
                pooled[reference][name],
                pooled[model][name],
                (distributions[reference][name], distributions[model][name]),
                clusters,
            )
            for name in pooled[reference]
        }
        for model in comparison.members
        if model != reference
    }


_CALIBRATION_MEASURES = ("brier", "log_loss", "ece")


def _calibrated(ones: Sequence[Judged], draws: Draws, before: Mapping[str, FloatArray]) -> Dict[str, Json]:
    """Calibrate one model by each of its methods: scores out of fold, and the final parameters."""
    result: Dict[str, Json] = {}
    model = ones[0].oof.model
    clusters = int(np.unique(np.concatenate([judged.oof.cluster for judged in ones])).size)
    for method in calibration.methods_for(model):
        nested = [calibration.nested(judged.oof, method) for judged in ones]
        drawn = [scores.calibration_measures(oof, draws) for oof, _ in nested]
        whole = [scores.calibration_measures(oof) for oof, _ in nested]
        after: Dict[str, Estimate] = {}
        change: Dict[str, Estimate] = {}
        for name in _CALIBRATION_MEASURES:
            distribution = mean_defined(np.stack([row[name] for row in drawn]))
            value = float(np.mean([row[name][0] for row in whole]))
            raw = float(np.mean([scores.calibration_measures(judged.oof)[name][0] for judged in ones]))
            after[name] = scores.estimate(value, distribution, clusters)
            change[name] = scores.estimate(value - raw, distribution - before[name], clusters)
        result[method] = {
            "nested": after,
            "change": change,
            "final": calibration.final([judged.oof for judged in ones], method).to_json(),
            "reasons": sorted({reason for _, reasons in nested for reason in reasons}),
            "predictions": [oof for oof, _ in nested],
        }
    return result


def preferred_method(calibrated: Mapping[str, Json]) -> str:
    """Return the method with the lowest log loss out of fold; empty if none lowers it.

    On spatial folds calibration often does not carry over: what is too sure in one part may be too careful in another.
    """
    changes = {method: found["change"]["log_loss"].value for method, found in calibrated.items()}
    better = {method: change for method, change in changes.items() if change < 0}
    return min(better, key=lambda method: better[method]) if better else ""


def _more_notes(judged: Mapping[str, Sequence[Judged]], draws: Draws) -> List[str]:
    notes = [
        f"{title_of(model)}: {text}."
        for model, ones in judged.items()
        for text in dict.fromkeys(text for one in ones for text in scores.conventions(one))
    ]
    if draws.clusters.size < scores.FEW_CLUSTERS:
        notes.append(f"Only {draws.clusters.size} clusters of sites: the intervals are narrower than they should be.")
    return notes


def main_split(splits: Sequence[str]) -> str:
    """Return the split that figures of one split are drawn for."""
    return next((split for split in MAIN_SPLITS if split in splits), splits[0])


# --- JSON ---


def number(value: float) -> Optional[float]:
    """Return a value as JSON holds it: six decimals, None for NaN."""
    return round(float(value), 6) if np.isfinite(value) else None


def estimate_json(made: Estimate) -> Json:
    """Return an estimate as JSON; ``reason`` only where there is one."""
    values: Json = {"value": number(made.value), "low": number(made.low), "high": number(made.high)}
    return {**values, "reason": made.reason} if made.reason else values


def assessed_json(assessed: Assessed) -> Json:
    """Return every number of one task and split."""
    comparison = assessed.comparison
    return {
        "task": comparison.task,
        "split": comparison.split,
        "classes": list(comparison.classes),
        "reference": comparison.reference,
        "seeds": {model: list(by) for model, by in comparison.members.items()},
        "simulated": comparison.simulated,
        "clusters": int(assessed.draws.clusters.size),
        "draws": int(assessed.draws.times.shape[1]),
        "sites": {model: [_sites(oof) for oof in by.values()] for model, by in comparison.members.items()},
        "pooled": {m: {k: estimate_json(v) for k, v in row.items()} for m, row in assessed.pooled.items()},
        "per_seed": {m: {k: [number(v) for v in vs] for k, vs in row.items()} for m, row in assessed.per_seed.items()},
        "folds": {m: {k: _fold_json(v) for k, v in row.items()} for m, row in assessed.folds.items()},
        "differences": {m: {k: estimate_json(v) for k, v in row.items()} for m, row in assessed.differences.items()},
        "thresholds": {m: [_thresholds(one) for one in ones] for m, ones in assessed.judged.items()},
        "calibration": {m: _calibration_json(found) for m, found in assessed.calibrated.items()},
        "notes": list(assessed.notes),
    }


def _sites(oof: OutOfFold) -> Json:
    count = len(oof.classes)
    return {
        "seed": oof.seed,
        "sites": int(oof.label.size),
        "per_class": dict(zip(oof.classes, np.bincount(oof.label, minlength=count).tolist())),
        "folds": {
            str(int(fold)): np.bincount(oof.label[oof.fold == fold], minlength=count).tolist()
            for fold in np.unique(oof.fold)
        },
    }


def _fold_json(mean: scores.FoldMean) -> Json:
    values: Json = {"value": number(mean.value), "sd": number(mean.spread), "defined": mean.defined, "of": mean.folds}
    return {**values, "reason": mean.reason} if mean.reason else values


def _thresholds(judged: Judged) -> Json:
    classes = judged.oof.classes
    return {
        point: {classes[k]: {str(fold): number(t) for fold, t in made.thresholds.items()} for k, made in by.items()}
        for point, by in judged.matched.items()
    }


def _calibration_json(calibrated: Mapping[str, Json]) -> Json:
    return {
        "preferred": preferred_method(calibrated),
        "methods": {
            method: {
                "nested": {k: estimate_json(v) for k, v in found["nested"].items()},
                "change": {k: estimate_json(v) for k, v in found["change"].items()},
                "final": found["final"],
                "reasons": found["reasons"],
            }
            for method, found in calibrated.items()
        },
    }


def manifest_calibration(assessed: Sequence[Assessed], task: str) -> Json:
    """Return a manifest's ``calibration`` of a task: ``{model: {split: {method..., parameters..., "scores": {...}}}}``.

    The parameters were fitted on all folds; the scores (before and after) are those of the nested fit.
    """
    result: Json = {}
    for one in assessed:
        if one.comparison.task != task:
            continue
        for model, found in one.calibrated.items():
            method = preferred_method(found)
            if not method:
                result.setdefault(model, {})[one.comparison.split] = calibration.Identity(
                    "no method lowered the log loss out of fold"
                ).to_json()
                continue
            made = found[method]
            result.setdefault(model, {})[one.comparison.split] = {
                **made["final"],
                "scores": {
                    name: {"before": number(one.pooled[model][name].value), "after": number(made["nested"][name].value)}
                    for name in _CALIBRATION_MEASURES
                },
            }
    return result
