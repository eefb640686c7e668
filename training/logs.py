"""What a training stage writes while it runs: a CSV file, TensorBoard where it is installed, a bar on a terminal.

A stage that goes on from step k continues its CSV file behind the row of step k, so that the file of a broken run is
that of an unbroken one (but for the seconds).
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, TextIO

_BAR_EVERY_S = 0.5


class StageLog:
    """The log of one stage. A context manager."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        columns: Sequence[str],
        steps: int,
        begun: int,
        *,
        tensorboard: bool,
        out: TextIO = sys.stderr,
    ) -> None:
        """Open the log.

        Args:
            folder: The run's ``logs``.
            stage: Name of the stage, also of the file.
            columns: Names of the numbers that each row holds, behind ``step`` and ``seconds``.
            steps: Length of the stage.
            begun: Steps that are done already.
            tensorboard: Write event files as well, where the package is installed.
            out: Where the bar is drawn, if it is a terminal.
        """
        self.path = folder / f"{stage}.csv"
        self.columns, self.steps, self.stage = ["step", "seconds", *columns], steps, stage
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read(self.path) if int(row["step"]) <= begun] if begun else []
        self.before_s = float(rows[-1]["seconds"]) if rows else 0.0
        self._begun, self._started, self._drawn = begun, time.perf_counter(), 0.0
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(text.getvalue(), encoding="utf-8")
        os.replace(part, self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self.columns, lineterminator="\n")
        self._board = _board(folder / "tensorboard" / stage, begun) if tensorboard else None
        self._out: Optional[TextIO] = out if out.isatty() else None

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._out is not None:
            self._out.write("\r\x1b[K")
            self._out.flush()

    @property
    def seconds(self) -> float:
        """Seconds that the stage has taken, earlier parts of it included."""
        return self.before_s + time.perf_counter() - self._started

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row."""
        stored = {name: f"{value:.8g}" for name, value in values.items()}
        self._writer.writerow({"step": step, "seconds": f"{self.seconds:.3f}", **stored})
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def bar(self, step: int, loss: float) -> None:
        """Draw the bar, not more often than the eye can follow."""
        now = time.perf_counter()
        if self._out is None or (now - self._drawn < _BAR_EVERY_S and step < self.steps):
            return
        self._drawn = now
        each = (now - self._started) / max(1, step - self._begun)
        filled = 24 * step // max(1, self.steps)
        left = words(each * (self.steps - step))
        text = f"{self.stage} [{'#' * filled}{'.' * (24 - filled)}] {step}/{self.steps}, loss {loss:.3f}, {left} left"
        self._out.write(f"\r\x1b[K{text}")
        self._out.flush()


def read(path: Path) -> List[Dict[str, str]]:
    """Rows of a log, whole ones only: a killed run may leave half a line."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(whole)) if None not in row.values() and row["step"].isdigit()]


def words(seconds: float) -> str:
    """A span of time for people: ``41 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _board(folder: Path, begun: int) -> Any:  # noqa: ANN401  # reason: the package is optional
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=begun)
