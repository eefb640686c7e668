"""Calibration of probabilities from out-of-fold predictions: temperature, isotonic regression, beta calibration.

A *calibrator* maps probabilities (N, K) to probabilities (N, K). It is fitted on out-of-fold predictions of one split,
never on what a model says of its own training sites. Two fits are made and must not be confused:

- the **nested** one, whose score is reported: fold k is calibrated by what was fitted on the other folds;
- the **final** one, fitted on all folds, which goes into the model folder and has no honest score of its own.

Its JSON form, for a manifest's ``calibration``, is that of :meth:`Calibrator.to_json`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Protocol, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from .outoffold import OutOfFold

FloatArray = NDArray[np.float64]

TEMPERATURE, ISOTONIC, BETA, NONE = "temperature", "isotonic", "beta", "none"
METHODS = (TEMPERATURE, ISOTONIC, BETA)
# A network's error is mostly one of scale; a forest's votes bend towards the middle, which one number cannot undo.
PREFERRED: Mapping[str, Tuple[str, ...]] = {"miso": (TEMPERATURE,)}
OTHERWISE = (BETA, ISOTONIC)

EPSILON = 1e-6  # a forest says exactly 0 and 1; their logarithms are cut off here
LOG_FLOOR = 1e-9  # for temperature: what a network in single precision still tells from 0
TEMPERATURES = (0.05, 20.0)
BETA_LIMIT = 50.0  # separable data would send the coefficients to infinity


class Calibrator(Protocol):
    """What every method is."""

    def apply(self, probability: FloatArray) -> FloatArray:
        """Return calibrated probabilities, (N, K), rows summing to 1."""

    def to_json(self) -> Dict[str, Any]:
        """Return the method and its parameters."""


@dataclass(frozen=True)
class Identity:
    """No calibration, and why.

    Attributes:
        reason: Why nothing could be fitted.
    """

    reason: str = ""

    def apply(self, probability: FloatArray) -> FloatArray:
        """Return the probabilities as they are."""
        return probability

    def to_json(self) -> Dict[str, Any]:
        """Return the method and the reason."""
        return {"method": NONE, "reason": self.reason}


@dataclass(frozen=True)
class Temperature:
    """Logits divided by one number, for two or more classes (Guo et al. 2017).

    Logits are taken from the probabilities: ln p is the logit up to a constant that softmax does not see, and for two
    classes softmax(ln p / T) is sigmoid(logit / T).

    Attributes:
        temperature: Above 1 makes probabilities less sure.
    """

    temperature: float

    def apply(self, probability: FloatArray) -> FloatArray:
        """See :class:`Calibrator`."""
        return _softmax(_log(probability) / self.temperature)

    def to_json(self) -> Dict[str, Any]:
        """See :class:`Calibrator`."""
        return {"method": TEMPERATURE, "temperature": round(self.temperature, 6)}


@dataclass(frozen=True)
class Beta:
    """Beta calibration (Kull, Silva Filho and Flach 2017): sigmoid(a ln p - b ln(1 - p) + c), a and b not negative.

    More than two classes: each against the rest, then divided by their sum.

    Attributes:
        coefficients: (a, b, c) of *present*, or of each class.
    """

    coefficients: Tuple[Tuple[float, float, float], ...]

    def apply(self, probability: FloatArray) -> FloatArray:
        """See :class:`Calibrator`."""
        return _each(
            probability, [lambda p, k=k: _sigmoid(_beta_features(p) @ np.asarray(k)) for k in self.coefficients]
        )

    def to_json(self) -> Dict[str, Any]:
        """See :class:`Calibrator`."""
        return {"method": BETA, "coefficients": [[round(value, 6) for value in three] for three in self.coefficients]}


@dataclass(frozen=True)
class Isotonic:
    """The rising step function nearest to the labels, joined by straight lines between its knots.

    More than two classes: each against the rest, then divided by their sum.

    Attributes:
        knots: (probabilities, calibrated probabilities) of *present*, or of each class; the first rises strictly, the
            second never falls.
    """

    knots: Tuple[Tuple[Tuple[float, ...], Tuple[float, ...]], ...]

    def apply(self, probability: FloatArray) -> FloatArray:
        """See :class:`Calibrator`."""
        return _each(probability, [lambda p, k=k: np.interp(p, k[0], k[1]) for k in self.knots])

    def to_json(self) -> Dict[str, Any]:
        """See :class:`Calibrator`."""
        # Not rounded: two knots may be as close as two probabilities, and the step between them as high as 1.
        return {"method": ISOTONIC, "knots": [[list(x), list(y)] for x, y in self.knots]}


def from_json(values: Mapping[str, Any]) -> Calibrator:
    """Read what :meth:`Calibrator.to_json` wrote.

    Raises:
        ValueError: If the method is not known or its parameters are missing.
    """
    method = values.get("method")
    try:
        if method == TEMPERATURE:
            return Temperature(float(values["temperature"]))
        if method == BETA:
            return Beta(tuple((float(a), float(b), float(c)) for a, b, c in values["coefficients"]))
        if method == ISOTONIC:
            return Isotonic(tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in values["knots"]))
        if method == NONE:
            return Identity(str(values.get("reason", "")))
    except (KeyError, TypeError) as error:
        raise ValueError(f"calibration {method!r} lacks parameters ({error})") from error
    raise ValueError(f"calibration {method!r} is none of {', '.join((*METHODS, NONE))}")


# --- fitting ---


def fit(method: str, probability: FloatArray, label: NDArray[np.generic]) -> Calibrator:
    """Fit a calibrator.

    Args:
        method: One of :data:`METHODS`.
        probability: (N, K), rows sum to 1.
        label: Class of each site, (N,).

    Returns:
        The calibrator; :class:`Identity` with a reason if the labels hold one class only.

    Raises:
        ValueError: If the method is not known.
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration {method!r}; known are {', '.join(METHODS)}")
    label = np.asarray(label)
    if np.unique(label).size < 2:
        return Identity("one class only among the sites that calibration is fitted on")
    if method == TEMPERATURE:
        return _fit_temperature(probability, label)
    targets = [(probability[:, k], label == k) for k in _modelled(probability.shape[1])]
    if method == BETA:
        return Beta(tuple(_fit_beta(p, is_so) for p, is_so in targets))
    return Isotonic(tuple(_fit_isotonic(p, is_so) for p, is_so in targets))


def _modelled(classes: int) -> Tuple[int, ...]:
    return (1,) if classes == 2 else tuple(range(classes))


def _fit_temperature(probability: FloatArray, label: NDArray[np.generic]) -> Temperature:
    logs, rows = _log(probability), np.arange(label.size)

    def loss(log_temperature: float) -> float:
        return float(-_log_softmax(logs / np.exp(log_temperature))[rows, label].mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-7})
    return Temperature(float(np.exp(found.x)))


def _fit_beta(probability: FloatArray, is_so: NDArray[np.bool_]) -> Tuple[float, float, float]:
    """Maximise the likelihood with a, b >= 0, so that a higher probability never becomes a lower one."""
    if is_so.all() or not is_so.any():
        # A class that these sites do not have: its prior odds, with half a site, in place of a certain 0 or 1.
        share = (is_so.sum() + 0.5) / (is_so.size + 1)
        return 0.0, 0.0, float(np.log(share / (1 - share)))
    features, target = _beta_features(probability), is_so.astype(np.float64)

    def loss(three: FloatArray) -> Tuple[float, FloatArray]:
        score = features @ three
        gradient = features.T @ (_sigmoid(score) - target) / target.size
        return float((np.logaddexp(0.0, score) - target * score).mean()), gradient

    bounds = [(0.0, BETA_LIMIT), (0.0, BETA_LIMIT), (-BETA_LIMIT, BETA_LIMIT)]
    found = minimize(
        loss,
        np.array([1.0, 1.0, 0.0]),
        jac=True,
        bounds=bounds,
        method="L-BFGS-B",
        options={"ftol": 1e-14, "gtol": 1e-9},
    )
    a, b, c = (float(value) for value in found.x)
    return a, b, c


def _fit_isotonic(probability: FloatArray, is_so: NDArray[np.bool_]) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Pool adjacent violators; sites with equal probabilities are one value.

    A step of n sites without any case (or with nothing else) says 0.5 / (n + 1) in place of 0 (or 1 minus that): that
    none was seen in n visits is no proof that there is none.
    """
    values, inverse = np.unique(probability, return_inverse=True)
    sites = np.bincount(inverse).astype(np.float64)
    cases = np.bincount(inverse, weights=is_so)
    blocks: List[List[float]] = []  # sites, cases, first value, last value
    for value, count, case in zip(values, sites, cases):
        blocks.append([count, case, value, value])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1], blocks[-1][2], last[3]]
    x: List[float] = []
    y: List[float] = []
    for count, case, low, high in blocks:
        floor = 0.5 / (count + 1)
        level = min(max(case / count, floor), 1 - floor)
        ends = [low] if low == high else [low, high]
        x += ends
        y += [level] * len(ends)
    rising = np.maximum.accumulate(y)  # a floor of a small step may lie above the next, larger one
    return tuple(float(value) for value in x), tuple(float(value) for value in rising)


def _each(probability: FloatArray, maps: Sequence[Any]) -> FloatArray:
    if len(maps) == 1:
        present = np.clip(maps[0](probability[:, 1]), 0.0, 1.0)
        return np.stack([1.0 - present, present], axis=1)
    every = np.stack([one(probability[:, k]) for k, one in enumerate(maps)], axis=1)
    total = every.sum(axis=1, keepdims=True)
    uniform = np.full_like(every, 1.0 / every.shape[1])
    result: FloatArray = np.divide(every, total, out=uniform, where=total > 0)
    return result


def _beta_features(p: FloatArray) -> FloatArray:
    cut = np.clip(p, EPSILON, 1 - EPSILON)
    features: FloatArray = np.stack([np.log(cut), -np.log1p(-cut), np.ones_like(cut)], axis=1)
    return features


def _log(probability: FloatArray) -> FloatArray:
    logs: FloatArray = np.log(np.clip(probability, LOG_FLOOR, 1.0))
    return logs


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _softmax(logits: FloatArray) -> FloatArray:
    result: FloatArray = np.exp(_log_softmax(logits))
    return result


def _sigmoid(score: FloatArray) -> FloatArray:
    result: FloatArray = np.exp(-np.logaddexp(0.0, -score))
    return result


# --- out of fold ---


def nested(oof: OutOfFold, method: str) -> Tuple[OutOfFold, List[str]]:
    """Calibrate each fold by what was fitted on the other folds.

    Returns:
        Predictions with the same sites, and the reasons why folds stayed as they were (none usually).
    """
    probability, reasons = oof.probability.copy(), []
    folds = np.unique(oof.fold)
    for fold in folds:
        held, others = oof.fold == fold, oof.fold != fold
        found = fit(method, oof.probability[others], oof.label[others]) if others.any() else Identity("one fold only")
        probability[held] = found.apply(oof.probability[held])
        if isinstance(found, Identity):
            reasons.append(f"fold {fold}: {found.reason}")
    return replace(oof, probability=probability), reasons


def final(oofs: Sequence[OutOfFold], method: str) -> Calibrator:
    """Fit on all out-of-fold predictions of a split (of all its seeds): what the model folder gets."""
    return fit(method, np.concatenate([o.probability for o in oofs]), np.concatenate([o.label for o in oofs]))


def methods_for(model: str) -> Tuple[str, ...]:
    """Return the methods that are tried for a model."""
    return PREFERRED.get(model, OTHERWISE)
