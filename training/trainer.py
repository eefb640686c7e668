"""Runs one stage of training: from its last checkpoint, or its start, to averaged weights.

A stage that was killed and goes on gives the same weights, bit by bit, as one that was not: batches are a pure function
of seed and step (:mod:`training.sampling`), the schedule is one of the step, dropout is seeded anew for every step, and
everything else is in the checkpoint. That holds for the same device, number of processes and number of threads.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type

import numpy as np
import torch
from torch import Tensor, nn

from miso_qgis.engine.cli import Terminal
from miso_qgis.engine.errors import Cancelled, RuntimeFailure

from . import checkpoints
from .config import ModelConfig
from .logs import StageLog, words
from .loop import initial_parameters, with_parameters
from .model import Miso
from .objectives import Objective, suspects
from .recipes import Recipe
from .sampling import Drawn, Labelled, Sampler
from .scenes import Scene
from .world import World

Parameters = Dict[str, Tensor]
Note = Callable[[str], None]

__all__ = ["Execution", "Labelled", "Parameters", "Stage", "Stop", "initial_parameters", "run_stage", "with_parameters"]


@dataclass(frozen=True)
class Execution:
    """How a computation is carried out; results do not depend on it.

    Attributes:
        checkpoint_steps: Steps between checkpoints.
        log_steps: Steps between rows of the log.
        tensorboard: Write TensorBoard's files where it is installed.
        from_previous: Go on from the checkpoint before the last.
    """

    checkpoint_steps: int = 200
    log_steps: int = 10
    tensorboard: bool = True
    from_previous: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage of one network.

    Attributes:
        name: Of its checkpoints and its log; may hold slashes.
        seed: Of its windows and of what is dropped.
        steps: Its length.
        start: Parameters to start from.
        labelled: Sites to learn from; none means contrastive pretraining.
    """

    name: str
    seed: int
    steps: int
    start: Parameters
    labelled: Optional[Labelled] = None

    def fingerprint(self, run: str) -> str:
        """Of everything that the stage learns from: a checkpoint of other folds or labels is refused."""
        digest = hashlib.sha256(f"{run} {self.name} {self.seed} {self.steps}".encode())
        if self.labelled is not None:
            for values in (self.labelled.row_px, self.labelled.column_px, *self.labelled.labels.values()):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


class Outcome(NamedTuple):
    """Averaged weights of a finished stage, and ``steps``, ``seconds``, ``loss`` and ``seed``."""

    parameters: Parameters
    facts: Dict[str, Any]


class Stop:
    """Remembers that the user (Ctrl-C) or the machine (SIGTERM) asks to stop; the progress of what comes before steps.

    A context manager. A second Ctrl-C does not wait for a checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Dict[int, Any] = {}
        self._terminal = Terminal()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._terminal.clear()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if self.asked and number == signal.SIGINT:
            raise Cancelled("Training", "stopped at once; the last checkpoint is kept.")
        self.asked = True

    def report(self, done: float, total: float, text: str = "") -> None:
        """Draw a bar on a terminal."""
        self._terminal.report(done, total, text)
        if done >= total:
            self._terminal.clear()

    def note(self, level: str, text: str) -> None:
        """Print a line."""
        self._terminal.note(level, text)

    def raise_if_cancelled(self) -> None:
        """Raise :class:`Cancelled` if a stop was asked for."""
        if self.asked:
            raise Cancelled("Training", "stopped; what was finished is kept.")


@dataclass(frozen=True)
class Surroundings:
    """What all stages of a run share.

    Attributes:
        folder: The run's folder.
        fingerprint: Of the run's configuration and data.
        config: The network.
        recipe: Settings.
        scene: Where windows are read.
        world: The processes.
        execution: How it is carried out.
        stop: Whether to stop.
    """

    folder: Path
    fingerprint: str
    config: ModelConfig
    recipe: Recipe
    scene: Scene
    world: World
    execution: Execution
    stop: Stop

    def checkpoints(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.folder / "checkpoints" / stage


def run_stage(stage: Stage, around: Surroundings, note: Note = lambda text: None) -> Outcome:
    """Train a stage to its end; a finished one is only read.

    Raises:
        InputError: If its checkpoint is damaged or belongs to another run.
        RuntimeFailure: If the loss is no finite number.
        Cancelled: If a stop was asked for; the state is saved.
    """
    folder, fingerprint = around.checkpoints(stage.name), stage.fingerprint(around.fingerprint)
    finished = checkpoints.result(folder, fingerprint)
    if finished is None:
        fitting = _Fitting(stage, around)
        state = checkpoints.latest(folder, fingerprint, previous=around.execution.from_previous)
        if state is not None:
            fitting.load(state)
            note(f"{stage.name}: goes on from step {fitting.step} of {stage.steps}")
        fitting.run(note)
        around.world.barrier()
        finished = checkpoints.result(folder, fingerprint)
        assert finished is not None
    return Outcome(finished["parameters"], finished["facts"])


def precision_of(recipe: Recipe, device: str) -> str:
    """The precision of products on a device, ``auto`` resolved."""
    if recipe.precision == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    return recipe.precision


class _Fitting:
    """The state of a stage, and its steps."""

    def __init__(self, stage: Stage, around: Surroundings) -> None:
        self.stage, self.around, self.step = stage, around, 0
        self.fingerprint = stage.fingerprint(around.fingerprint)
        recipe, world = around.recipe, around.world
        self.settings = recipe.fit if stage.labelled is not None else recipe.pretrain
        self.part = world.part(self.settings.batch)
        if recipe.deterministic:
            # What cuBLAS asks for; it is read when the first product is computed.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.model = Miso(around.config)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in stage.start.items():
                own[name].copy_(value)
        self.model.to(world.device).train()
        precision = precision_of(recipe, world.device)
        self.objective = Objective(
            self.model, recipe, world, supervised=stage.labelled is not None, precision=precision
        )
        self.forward: nn.Module = self.objective
        if world.size > 1:
            ids = [torch.device(world.device).index] if world.device.startswith("cuda") else None
            # A view may leave a group out, whose encoder then gets no gradient.
            self.forward = nn.parallel.DistributedDataParallel(
                self.objective, device_ids=ids, broadcast_buffers=False, find_unused_parameters=bool(recipe.views)
            )
        self.learned = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        decayed: Dict[str, Any] = {"params": [v for v in self.learned.values() if v.dim() > 1]}
        others: Dict[str, Any] = {"params": [v for v in self.learned.values() if v.dim() <= 1], "weight_decay": 0.0}
        self.optimiser = torch.optim.AdamW(
            [decayed, others],
            lr=self.settings.learning_rate,
            weight_decay=recipe.optimiser.weight_decay,
            fused=True,
        )
        # Half precision loses small gradients; bfloat16 has float32's range and needs no scaling.
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16" and world.device.startswith("cuda"))
        self.averaged = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.sampler = Sampler(around.scene, around.config, recipe, stage.seed, stage.labelled)

    def state(self) -> checkpoints.State:
        """Everything that the next step depends on, on the CPU."""
        return {
            "fingerprint": self.fingerprint,
            "stage": self.stage.name,
            "seed": self.stage.seed,
            "steps": self.stage.steps,
            "model": {name: value.detach().cpu() for name, value in self.model.named_parameters()},
            "averaged": {name: value.cpu() for name, value in self.averaged.items()},
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue where a state was taken."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["model"].items():
                own[name].copy_(value)
            for name, value in state["averaged"].items():
                self.averaged[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])

    def run(self, note: Note) -> None:
        """Take all remaining steps; leave the result, or the state where it was stopped."""
        around, steps = self.around, self.stage.steps
        if not around.world.leads:
            self._steps(None)
            return
        columns = ["learning_rate", *self.objective.names, "gradient_norm", "windows_per_s"]
        with StageLog(
            around.folder / "logs",
            self.stage.name,
            columns,
            steps,
            self.step,
            tensorboard=around.execution.tensorboard,
        ) as log:
            loss = self._steps(log)
            seconds = log.seconds
        checkpoints.finish(
            around.checkpoints(self.stage.name),
            self.fingerprint,
            {name: value.cpu() for name, value in self.averaged.items()},
            {"steps": steps, "seconds": seconds, "loss": loss, "seed": self.stage.seed},
        )
        note(f"{self.stage.name}: {steps} steps in {words(seconds)}, loss {loss:.3f}")

    def _steps(self, log: Optional[StageLog]) -> float:
        around, steps = self.around, self.stage.steps
        value, begun = float("nan"), (self.step, log.seconds if log else 0.0)
        # Rasters are read beside the computation; what is in memory is there at once.
        with ThreadPoolExecutor(1) as reader:
            ahead: Optional[Future[Drawn]] = None
            while self.step < steps:
                drawn = ahead.result() if ahead is not None else self.sampler.draw(self.step, self.part)
                more = self.step + 1 < steps and not around.scene.in_memory
                ahead = reader.submit(self.sampler.draw, self.step + 1, self.part) if more else None
                rate = self.settings.rate(self.step, steps)
                values, norm = self._advance(drawn, rate)
                value = values[0]
                if log is not None:
                    if self.step % around.execution.log_steps == 0 or self.step == steps:
                        speed = (self.step - begun[0]) * self.settings.batch / max(log.seconds - begun[1], 1e-9)
                        named = dict(zip(self.objective.names, values))
                        log.row(
                            self.step,
                            {"learning_rate": rate, **named, "gradient_norm": norm, "windows_per_s": speed},
                        )
                    log.bar(self.step, value)
                self._pause(log)
        return value

    def _pause(self, log: Optional[StageLog]) -> None:
        """Write a checkpoint where one is due; stop where that is asked for, in all processes after the same step."""
        around, steps = self.around, self.stage.steps
        asked = torch.tensor(float(around.stop.asked), device=around.world.device)
        stopped = bool(around.world.total(asked) > 0)
        if self.step == steps:
            return
        if stopped or self.step % around.execution.checkpoint_steps == 0:
            if around.world.leads:
                checkpoints.save(around.checkpoints(self.stage.name), self.step, self.state())
            if stopped:
                around.world.barrier()
                found = f"stopped at step {self.step} of {steps} of {self.stage.name}; its state is saved."
                raise Cancelled("Training", found, "", "The same command goes on from there.")

    def _advance(self, drawn: Drawn, rate: float) -> Tuple[List[float], float]:
        """One step: (loss and parts of the whole batch, norm of the gradient)."""
        around = self.around
        # Dropout of this step and process, whatever was computed before.
        torch.manual_seed((self.stage.seed * 1_000_003 + self.step) * 1_009 + around.world.rank)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.forward(drawn.fields)
        values = (around.world.total(losses) / around.world.size).tolist()
        if not all(abs(value) < float("inf") for value in values):  # NaN compares as false
            self._refuse(drawn, f"the loss became {values[0]:g}")
        self.scaler.scale(losses[0]).backward()
        self.scaler.unscale_(self.optimiser)
        norm = float(nn.utils.clip_grad_norm_(list(self.learned.values()), around.recipe.optimiser.clip))
        if not norm < float("inf") and not self.scaler.is_enabled():  # a scaler skips such a step by itself
            self._refuse(drawn, f"the gradient's norm became {norm:g}")
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self._average()
        return values, norm

    def _average(self) -> None:
        # The plain mean at first, so that the start does not linger in short runs.
        decay = min(self.around.recipe.optimiser.average_decay, (self.step - 1.0) / self.step)
        with torch.no_grad():
            targets = [self.averaged[name] for name in self.learned]
            torch._foreach_lerp_(targets, [value.detach() for value in self.learned.values()], 1.0 - decay)

    def _refuse(self, drawn: Drawn, found: str) -> None:
        """Stop before a broken step: parameters are still those of the last good one."""
        around = self.around
        named = suspects(self.model, drawn.fields, [around.scene.describe(*corner) for corner in drawn.corners])
        shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        kept = checkpoints.stored(around.checkpoints(self.stage.name))
        last = f"The checkpoint of step {kept[-1][0]} is kept." if kept else "No checkpoint was written yet."
        raise RuntimeFailure(
            f'Training stage "{self.stage.name}"',
            f"{found} at step {self.step + 1}, in windows centred at {shown} (EPSG:3338).",
            f"A finite number is needed. {last}",
            "Look for absurd values in the rasters there; else lower learning_rate in the recipe, in a new run folder.",
        )
