"""Errors of the engine: each says what, what was found, what is needed and what to do.

Standard library only, because both sides of the process boundary import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, List, Sequence


@dataclass(frozen=True)
class Problem:
    """One thing that stands in the way, in the four parts that every message of this project has.

    Attributes:
        what: What is affected, with its name: ``Layer "dem_30m"``, ``Model folder "/data/cpcrw"``.
        found: What is the case, as a sentence.
        needed: What would be right, as a sentence. May be empty.
        remedy: What the user can do, as a sentence.
    """

    what: str
    found: str
    needed: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.what}: {self.found}", self.needed, self.remedy) if part)


class MisoError(Exception):
    """Base of every error that the engine raises on purpose. Holds one or more problems.

    Attributes:
        code: Stable word for programs (crosses the process boundary).
        exit_code: Exit status of the command line.
        problems: At least one problem.
    """

    code: ClassVar[str] = "failure"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, found: str, needed: str = "", remedy: str = "") -> None:
        self.problems: List[Problem] = [Problem(what, found, needed, remedy)]
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> MisoError:
        """Make one error of all ``problems``, so that the user can mend them in one go."""
        if not problems:
            raise ValueError("an error needs at least one problem")
        first = problems[0]
        error = cls(first.what, first.found, first.needed, first.remedy)
        error.problems = list(problems)
        error.args = ("\n".join(str(problem) for problem in problems),)
        return error


class InputError(MisoError, ValueError):
    """Raised when a raster, polygon or setting that the user gave cannot be used as it is."""

    code = "bad_input"
    exit_code = 2


class ModelFolderError(MisoError, OSError):
    """Raised when a model folder is incomplete, altered, too new, or would load something unsafe."""

    code = "bad_model"
    exit_code = 2

    def __str__(self) -> str:
        # OSError formats its own arguments; the problems are the message.
        return "\n".join(str(problem) for problem in self.problems)


class OutputError(MisoError, OSError):
    """Raised when a result cannot be written: folder read-only, disk full, output equal to an input."""

    code = "bad_output"
    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class RuntimeFailure(MisoError, RuntimeError):
    """Raised when the computation itself fails: out of memory, the ONNX runtime reports an error."""

    code = "failure"
    exit_code = 1


class Cancelled(MisoError):
    """Raised inside a run when the user has asked it to stop. Nothing is left behind; no error is shown."""

    code = "cancelled"
    exit_code = 3

    def __init__(self, what: str = "The run", found: str = "cancelled.", needed: str = "", remedy: str = "") -> None:
        super().__init__(what, found, needed, remedy)
