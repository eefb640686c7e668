"""The bundled model: its configuration, and how MISO is pretrained, fitted and asked on the watershed.

What was chosen here was chosen on the development seed (docs/experiments.md lists what was tried); the protocol's seeds
only measure it. Figures beside the settings are seconds on one core of the machine that trained it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from miso_qgis.engine.schema import to_json

from . import cpcrw, loop, predictions
from .batches import Drawer, Points, Scene, cut
from .conditioning import Conditioning, fit_scales
from .config import (
    FitConfig,
    GroupConfig,
    ModelConfig,
    PretrainConfig,
    SizeConfig,
    TrainingConfig,
    surface_features,
    terrain_features,
    with_scales,
)
from .cpcrw import WatershedStack
from .loop import Job, Parameters
from .model import Miso
from .observations import Observations
from .predictions import Predictor

# Half the widths of `small`: on two cores this halves the time of a step, and several such networks, averaged, are
# worth more than one wide one. Cells and tokens of 80 m: the rasters are 50 m, and the labels say nothing finer.
# The finest stage only embeds; the stages above attend over their whole map (16 x 16 and 8 x 8 tokens). Attention
# windows smaller than the map left squares of 640 m on maps of networks as briefly trained as these, and offsets taken
# at full strength a ripple of 80 m (docs/experiments.md).
SIZE = SizeConfig(
    cell_px=8,
    patch_px=8,
    channels=16,
    depths=(0, 2, 2),
    attention_window=16,
    expansion=2,
    implicit_widths=(16, 32),
    embedding=32,
    offset_gain=0.1,
)
# Land cover shifts more between parts of the watershed than terrain does, so half of the answer does without it.
VIEWS = (("terrain", "surface"), ("terrain",))
TRAINING = TrainingConfig(
    pretrain=PretrainConfig(steps=100),
    fit=FitConfig(steps=200, points=192, learning_rate=2e-3, smoothing=0.05, negated=("aspect_sin",)),
    members=4,
    temperature=1.0,  # the development seed's held-out sectors ask for none (slope 0.95): the smoothing took its place
)
# Step and decoded side of windows in prediction: context of 32 px all around, blend over 32 px.
STRIDE_PX, DECODE_PX = 160, 192
SCALE_WINDOWS = 48
SCALE_SEED = 12345
# A member's seeds lie this far apart from another run's, so that no two networks draw the same windows.
SEEDS_PER_RUN = 1000

Note = Callable[[str], None]


def scene(stack: WatershedStack, size: SizeConfig = SIZE) -> Scene:
    """The watershed as training sees it: averaged to cells once."""
    channels: Dict[str, torch.Tensor] = {}
    start = 0
    for group in cpcrw.groups():
        count = len(group.channels)
        channels[group.name] = torch.from_numpy(stack.channels[start : start + count])
        start += count
    transform = stack.grid.transform
    full = Scene(channels, stack.valid, (transform.c, transform.f), float(transform.a))
    return full.coarsened(size.cell_px)


def model_config(place: Scene, size: SizeConfig = SIZE) -> ModelConfig:
    """Groups and features of the watershed, scaled by windows of the whole of it (covariates only)."""
    features = {
        "terrain": terrain_features(),
        "surface": surface_features([channel.name for channel in cpcrw.groups()[1].channels]),
    }
    draw = Drawer(place, size.window_px, SCALE_SEED, flips=False).draw(SCALE_WINDOWS)
    raw = cut(place, draw.rows, draw.columns)
    groups = []
    for spec in cpcrw.groups():
        group = GroupConfig(spec.name, tuple(channel.name for channel in spec.channels), features[spec.name])
        groups.append(with_scales(group, *fit_scales(Conditioning(group, size), raw[spec.name])))
    return ModelConfig(tuple(groups), size, views=VIEWS)


def labelled(observations: Observations, stack: WatershedStack) -> Points:
    """Observations as points of the scene."""
    transform = stack.grid.transform
    return Points(
        (transform.f - observations.y) / -transform.e,
        (observations.x - transform.c) / transform.a,
        observations.label.astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What every fit on the watershed needs, made once.

    Attributes:
        stack: All channels on the 10 m grid.
        place: The same as training sees it.
        config: The network.
        training: How it is trained.
        folder: Where pretrained networks are kept.
    """

    stack: WatershedStack
    place: Scene
    config: ModelConfig
    training: TrainingConfig
    folder: Path

    @classmethod
    def of(cls, folder: Path, training: TrainingConfig = TRAINING, size: SizeConfig = SIZE) -> Workshop:
        """Load the watershed."""
        stack = cpcrw.load_stack()
        place = scene(stack, size)
        return cls(stack, place, model_config(place, size), training, folder)

    def member_seeds(self, seed: int) -> List[int]:
        """Seeds of the members of a run."""
        return [seed * SEEDS_PER_RUN + member for member in range(self.training.members)]

    def pretrained(self, seed: int, note: Note = lambda text: None) -> List[Parameters]:
        """Contrastively pretrained members of a run, from covariates of the whole watershed; kept in ``folder``.

        Pretraining sees no label, so all folds of a seed start from the same networks.
        """
        found = []
        for member_seed in self.member_seeds(seed):
            path = self.folder / f"pretrained_{self._key()}_{member_seed}.pt"
            if not path.is_file():
                (parameters,) = loop.pretrain(
                    self.config, self.training.pretrain, self.training.fit, self.place, [member_seed], _steps(note)
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                torch.save(parameters, part)
                part.replace(path)
            found.append(torch.load(path, weights_only=True))
        return found

    def fitted(self, observations: Observations, seed: int, note: Note = lambda text: None) -> List[Miso]:
        """Members fine-tuned on observations."""
        points, settings = labelled(observations, self.stack), self.training
        members = []
        for member_seed, start in zip(self.member_seeds(seed), self.pretrained(seed, note)):
            (parameters,) = loop.fit(
                self.config,
                settings.fit,
                settings.pretrain,
                self.place,
                [Job(member_seed, points, start)],
                _steps(note),
            )
            members.append(loop.with_parameters(self.config, parameters))
        return members

    def ask(self, members: Sequence[Miso], places: Observations) -> NDArray[np.float64]:
        """Probabilities at places, (N,), blended over windows as in prediction."""
        points = labelled(places, self.stack)
        return loop.predict(
            members, self.place, points.row_px, points.column_px, (STRIDE_PX, DECODE_PX), self.training.temperature
        )

    def fit(self, observations: Observations, seed: int) -> Predictor:
        """What :func:`training.predictions.out_of_fold` calls."""
        members = self.fitted(observations, seed)
        return lambda places: self.ask(members, places)

    def _key(self) -> str:
        """Short name of everything that pretraining depends on."""
        what = to_json({"config": self.config, "pretrain": self.training.pretrain, "fit": self.training.fit})
        for name in (
            "steps",
            "points",
            "smoothing",
            "group_dropout",
            "feature_dropout",
            "contrastive_weight",
            "learning_rate",
        ):
            what["fit"].pop(name)  # these matter to fine-tuning only
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def predict_out_of_fold(
    workshop: Workshop, split_names: Sequence[str], seeds: Sequence[int], folder: Path, note: Note = lambda text: None
) -> None:
    """Run the protocol's folds for MISO and store its predictions; what is stored already is left as it is."""
    cells = cpcrw.load_open_cells()
    for split in split_names:
        for seed in seeds:
            if predictions.file_of(folder, "miso", split, seed).is_file():
                continue
            found = predictions.out_of_fold(workshop.fit, split, seed, cells=cells, note=note)
            facts = {"training": to_json(workshop.training), "size": to_json(workshop.config.size), **environment()}
            predictions.save(dataclasses.replace(found, facts=facts), folder, "miso", split, seed)


def environment() -> Dict[str, Any]:
    """Versions that a run depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def write_run(workshop: Workshop, seed: int, folder: Path, data: Optional[Dict[str, str]] = None) -> None:
    """Record what a run is determined by: configuration, environment, seeds, digests of the data."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": to_json(workshop.config),
        "training": to_json(workshop.training),
        "seed": seed,
        "member_seeds": workshop.member_seeds(seed),
        "environment": environment(),
        "data": data or {},
    }
    (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _steps(note: Note) -> loop.Report:
    def report(step: int, steps: int, value: float) -> None:
        if step == steps or step % 100 == 0:
            note(f"step {step} of {steps}: loss {value:.3f}")

    return report
