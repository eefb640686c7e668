"""Training: contrastive pretraining, fine-tuning on labelled points, averaged weights. Seeded, fixed length.

Several networks of one form (members of an ensemble, folds of a cross-validation) train side by side as *jobs*: their
parameters carry a leading axis (J, ...) and one step advances all. Every job draws from its own seeds, so what a job
learns does not depend on the others beside rounding. On a GPU this makes the whole cross-validation one short run; on
a CPU the command line hands over one job at a time, which is then computed without the extra axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .batches import Draw, Drawer, Points, Scene, cut, stacked
from .config import FitConfig, ModelConfig, PretrainConfig
from .losses import info_nce, masked_bce
from .model import Embeddings, Miso, scale_coordinates

Parameters = Dict[str, Tensor]
Batch = Dict[str, Tensor]
Report = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Job:
    """One network to be fitted.

    Attributes:
        seed: Of its windows and of what is dropped.
        points: What it learns from.
        start: Parameters to start from.
    """

    seed: int
    points: Points
    start: Parameters


def initial_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Parameters of a fresh network."""
    torch.manual_seed(seed)
    return {name: value.detach().clone() for name, value in Miso(config).named_parameters()}


def with_parameters(config: ModelConfig, parameters: Parameters) -> Miso:
    """A network in evaluation mode with these parameters (all of them, by name)."""
    model = Miso(config)
    own = dict(model.named_parameters())
    if own.keys() != parameters.keys():
        raise ValueError(f"parameters differ from the network's: {sorted(own.keys() ^ parameters.keys())}")
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)
    return model.eval()


def pretrain(
    config: ModelConfig,
    settings: PretrainConfig,
    fit: FitConfig,
    scene: Scene,
    seeds: Sequence[int],
    report: Optional[Report] = None,
) -> List[Parameters]:
    """Contrastive pretraining of one network per seed, on covariates only; optimiser settings are ``fit``'s."""
    drawers = [Drawer(scene, config.size.window_px, seed, flips=fit.flips) for seed in seeds]

    def draws() -> List[Draw]:
        return [drawer.draw(settings.batch, settings.locations) for drawer in drawers]

    def loss(model: Miso, batch: Batch) -> Tensor:
        raw = {group.name: batch[group.name] for group in config.groups}
        found = model.embed(raw, batch["location_rows_px"], batch["location_columns_px"])
        return _contrastive(model, found, batch, settings)

    start = [initial_parameters(config, seed) for seed in seeds]
    runner = _Runner(config, fit, start, scene, settings.steps, settings.learning_rate)
    return runner.run(draws, loss, list(seeds), report)


def fit(
    config: ModelConfig,
    settings: FitConfig,
    contrast: PretrainConfig,
    scene: Scene,
    jobs: Sequence[Job],
    report: Optional[Report] = None,
) -> List[Parameters]:
    """Fine-tune one network per job; returns averaged weights."""
    drawers = [Drawer(scene, config.size.window_px, job.seed, flips=settings.flips) for job in jobs]
    locations = contrast.locations if settings.contrastive_weight > 0 else 0

    def draws() -> List[Draw]:
        return [
            drawer.draw(settings.batch, locations, settings.points, job.points) for drawer, job in zip(drawers, jobs)
        ]

    def loss(model: Miso, batch: Batch) -> Tensor:
        raw = {group.name: batch[group.name] for group in config.groups}
        keep = {group.name: batch[f"keep_{group.name}"] for group in config.groups}
        rows = torch.cat([batch["point_rows_px"], batch["location_rows_px"]], dim=1)
        columns = torch.cat([batch["point_columns_px"], batch["location_columns_px"]], dim=1)
        found = model.embed(raw, rows, columns, keep)
        asked = batch["label"].shape[1]
        logits = [model.predict(visual[:, :asked])["nsp"][..., 0] for visual in found.visual]
        value = torch.stack(
            [masked_bce(logit, batch["label"], batch["counts"], settings.smoothing) for logit in logits]
        ).mean()
        if locations:
            rest = Embeddings(
                {name: embedding[:, asked:] for name, embedding in found.modalities.items()},
                [visual[:, asked:] for visual in found.visual],
            )
            value = value + settings.contrastive_weight * _contrastive(model, rest, batch, contrast)
        return value

    runner = _Runner(config, settings, [job.start for job in jobs], scene, settings.steps, settings.learning_rate)
    return runner.run(draws, loss, [job.seed for job in jobs], report)


def _contrastive(model: Miso, found: Embeddings, batch: Batch, settings: PretrainConfig) -> Tensor:
    """InfoNCE between the modalities (every pair) and between visual and geographic embeddings."""
    flat = [embedding.flatten(0, 1) for embedding in found.modalities.values()]
    pairs = [(i, j) for i in range(len(flat)) for j in range(i)]
    between = [info_nce(flat[i], flat[j], settings.temperature) for i, j in pairs]
    geo = model.geo(batch["location_scaled"]).flatten(0, 1)
    located = info_nce(found.visual[0].flatten(0, 1), geo, settings.temperature)
    return torch.stack(between).mean() + settings.geo_weight * located


class _Runner:
    """Advances J networks by gradient steps of AdamW under a warm-up and cosine schedule."""

    def __init__(
        self,
        config: ModelConfig,
        settings: FitConfig,
        start: Sequence[Parameters],
        scene: Scene,
        steps: int,
        learning_rate: float,
    ) -> None:
        self.config, self.settings, self.scene, self.steps = config, settings, scene, steps
        self.device = next(iter(scene.channels.values())).device
        self.model = Miso(config).to(self.device).train()
        self.jobs = len(start)
        self.parameters = {
            name: torch.stack([one[name].to(self.device) for one in start]).requires_grad_() for name in start[0]
        }
        decayed = [value for value in self.parameters.values() if value.dim() > 2]  # (J, out, in) and convolutions
        others = [value for value in self.parameters.values() if value.dim() <= 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=learning_rate,
            fused=True,  # many small tensors: one kernel saves a tenth of a step
        )
        warmup = max(1, round(settings.warmup * steps))

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, rate)
        self.averaged = {name: value.detach().clone() for name, value in self.parameters.items()}

    def run(
        self,
        draws: Callable[[], List[Draw]],
        loss: Callable[[Miso, Batch], Tensor],
        seeds: List[int],
        report: Optional[Report],
    ) -> List[Parameters]:
        torch.manual_seed(seeds[0])  # dropout, if any
        generators = [np.random.default_rng([seed, 1]) for seed in seeds]

        def one(parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
            value: Tensor = torch.func.functional_call(_Loss(self.model, loss), _prefixed(parameters), (batch,))
            return value

        for step in range(self.steps):
            batch = self._batch(draws(), generators)
            self.optimiser.zero_grad(set_to_none=True)
            if self.jobs == 1:
                value = one({k: v[0] for k, v in self.parameters.items()}, {k: v[0] for k, v in batch.items()})[None]
            else:
                value = torch.func.vmap(one, randomness="different")(self.parameters, batch)
            value.sum().backward()  # type: ignore[no-untyped-call]  # jobs share nothing, so the sum separates
            self._clip()
            self.optimiser.step()
            self.schedule.step()
            self._average(step)
            if report is not None and (step % 20 == 19 or step + 1 == self.steps):
                report(step + 1, self.steps, float(value.detach().mean()))
        return [{k: v[j].detach().cpu().clone() for k, v in self.averaged.items()} for j in range(self.jobs)]

    def _batch(self, draws: Sequence[Draw], generators: Sequence[np.random.Generator]) -> Batch:
        fields = stacked(draws)
        jobs, windows = fields["rows"].shape[:2]
        batch: Batch = {
            name: torch.as_tensor(fields[name], device=self.device)
            for name in (
                "point_rows_px",
                "point_columns_px",
                "label",
                "counts",
                "location_rows_px",
                "location_columns_px",
            )
        }
        metres = torch.as_tensor(fields["location_m"])
        batch["location_scaled"] = scale_coordinates(metres[..., 0], metres[..., 1]).to(self.device)
        rows, columns = (fields[name].reshape(jobs * windows, -1).astype(np.int64) for name in ("rows", "columns"))
        signs = self._signs(windows, generators)
        for name, raw in cut(self.scene, rows, columns).items():
            batch[name] = raw.reshape(jobs, windows, *raw.shape[1:]) * signs[name]
        for name, keep in self._keep(windows, generators).items():
            batch[f"keep_{name}"] = keep
        return batch

    def _signs(self, windows: int, generators: Sequence[np.random.Generator]) -> Dict[str, Tensor]:
        """Factor of each raw channel per window, 1 or -1: {group: (J, N, C, 1, 1)}."""
        turned = np.stack([generator.random(windows) < 0.5 for generator in generators])  # (J, N)
        signs: Dict[str, Tensor] = {}
        for group in self.config.groups:
            is_negated = np.array([channel in self.settings.negated for channel in group.channels])
            factor = np.where(turned[:, :, None] & is_negated, -1.0, 1.0).astype(np.float32)
            signs[group.name] = torch.as_tensor(factor, device=self.device)[..., None, None]
        return signs

    def _keep(self, windows: int, generators: Sequence[np.random.Generator]) -> Dict[str, Tensor]:
        """Which features each window sees: {group: (J, N, F) of 0 and 1}. At most one group is missing at a time."""
        groups = self.config.groups
        chance = self.settings.group_dropout
        keep: Dict[str, List[np.ndarray[Any, Any]]] = {group.name: [] for group in groups}
        for generator in generators:
            missing = np.where(generator.random(windows) < chance, generator.integers(len(groups), size=windows), -1)
            for i, group in enumerate(groups):
                seen = generator.random((windows, len(group.features))) >= self.settings.feature_dropout
                keep[group.name].append((seen & (missing != i)[:, None]).astype(np.float32))
        return {name: torch.as_tensor(np.stack(parts), device=self.device) for name, parts in keep.items()}

    def _clip(self) -> None:
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        if self.jobs == 1:  # the same in fewer calls
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip)
            return
        squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0)  # (J,)
        factor = (self.settings.clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.dim() - 1)))

    def _average(self, step: int) -> None:
        # The plain mean at first, so that the start does not linger in short runs.
        decay = min(self.settings.average_decay, step / (step + 1.0) if step else 0.0)
        with torch.no_grad():
            targets, sources = list(self.averaged.values()), list(self.parameters.values())
            torch._foreach_lerp_(targets, [source.detach() for source in sources], 1.0 - decay)


class _Loss(torch.nn.Module):
    """Makes a loss of a model look like a module's forward, which is what ``functional_call`` replaces weights in."""

    def __init__(self, model: Miso, loss: Callable[[Miso, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


def _prefixed(parameters: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    return {f"model.{name}": value for name, value in parameters.items()}


def predict(
    models: Sequence[Miso],
    scene: Scene,
    row_px: np.ndarray[Any, Any],
    column_px: np.ndarray[Any, Any],
    layout: Tuple[int, int],
    temperature: float = 1.0,
    task: str = "nsp",
) -> np.ndarray[Any, Any]:
    """Probabilities at places of a scene: mean logit of ``models``, blended over windows with a cosine ramp.

    Args:
        models: Networks in evaluation mode, of one window size.
        scene: Where.
        row_px: Scene coordinates, (P,).
        column_px: Likewise.
        layout: Step between windows and side of the central square that is asked, in pixels.
        temperature: Divisor of the mean logit.
        task: Which output; binary.

    Returns:
        (P,) float64.
    """
    stride, inner = layout
    size = models[0].config.size.window_px
    step = scene.step_px
    device = next(iter(scene.channels.values())).device
    margin = (size - inner) // 2
    total, weights = np.zeros(row_px.size), np.zeros(row_px.size)
    height, width = (side * step for side in scene.valid.shape)
    places = np.arange(size // step)[None]
    for top in range(-margin, height - margin, stride):
        for left in range(-margin, width - margin, stride):
            corner = (top // step, left // step)
            row, column = row_px - corner[0] * step, column_px - corner[1] * step
            weight = _ramp(row, size, inner, inner - stride) * _ramp(column, size, inner, inner - stride)
            asked = np.flatnonzero(weight > 0)
            if asked.size == 0:
                continue
            raw = cut(scene, corner[0] + places, corner[1] + places)
            at = [torch.as_tensor(part[asked], dtype=torch.float32, device=device)[None] for part in (row, column)]
            with torch.no_grad():
                logit = torch.stack([model(raw, *at)[task][0, :, 0] for model in models]).mean(dim=0)
            total[asked] += weight[asked] * torch.sigmoid(logit / temperature).double().cpu().numpy()
            weights[asked] += weight[asked]
    probability: np.ndarray[Any, Any] = total / weights
    return probability


def _ramp(place: np.ndarray[Any, Any], size: int, inner: int, ramp: int) -> np.ndarray[Any, Any]:
    """Blend weight along one axis: 1 inside, a cosine ramp to 0 at the edge of the central ``inner`` pixels."""
    edge = np.minimum(place, size - place) - (size - inner) / 2.0
    return np.where(edge > 0, 0.5 - 0.5 * np.cos(np.pi * np.clip(edge / max(ramp, 1), 0.0, 1.0)), 0.0)
