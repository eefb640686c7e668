"""The command line of training: one subcommand per step, each importing only what it needs.

``sample`` and ``simulate`` run in the engine's environment, so nothing heavy may be imported at the top of this file.
A step is a function of the parsed arguments that returns an exit status; :data:`STEPS` lists them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable, List, Optional, Tuple

from miso_qgis.engine.errors import MisoError

from .splits import SPLITS

REPOSITORY = Path(__file__).resolve().parents[1]
PREDICTIONS = REPOSITORY / "runs" / "predictions"
EVALUATION = REPOSITORY / "runs" / "evaluation.json"
VALIDATION = REPOSITORY / "docs" / "validation.md"
MODEL_FOLDER = REPOSITORY / "models" / "cpcrw"

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser


def _sample_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for dem.tif, nlcd.tif, aoi.gpkg, sample.json")


def _sample(arguments: Arguments) -> int:
    from .sample import prepare_sample

    sample = prepare_sample(arguments.out)
    print(f"{sample.sentence}\nIn {arguments.out}: {', '.join(path.name for path in sample.paths.values())}")
    return 0


def _simulate_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for dem.tif and nlcd.tif")
    parser.add_argument("--seed", type=int, default=1, help="seed of the landscape (default 1)")


def _simulate(arguments: Arguments) -> int:
    from . import simulation

    paths = simulation.simulate_valley(arguments.out, arguments.seed)
    print(f"{simulation.SENTENCE}\nIn {arguments.out}: {', '.join(path.name for path in paths.values())}")
    return 0


def _protocol_arguments(parser: Parser) -> None:
    parser.add_argument("--predictions", type=Path, default=PREDICTIONS, help="folder of the out-of-fold predictions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the protocol (default 1 2 3)")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="splits (default all)")


def _baselines(arguments: Arguments) -> int:
    from . import baselines

    names = tuple(baselines.BASELINES)
    baselines.predict_out_of_fold(names, arguments.splits, arguments.seeds, arguments.predictions, _say)
    return 0


def _random_forest_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="model folder that gets rf_nsp.onnx")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample and the forest (default 1)")


def _random_forest(arguments: Arguments) -> int:
    from . import baselines

    settings = baselines.ship_forest(arguments.out, arguments.seed)
    print(f"{arguments.out / 'rf_nsp.onnx'}: {baselines.TREES} trees, {settings}")
    return 0


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument("--predictions", type=Path, default=PREDICTIONS, help="folder of the out-of-fold predictions")
    parser.add_argument("--document", type=Path, default=VALIDATION, help="page whose results section is written")
    parser.add_argument("--result", type=Path, default=EVALUATION, help="JSON file with all figures, curves included")


def _evaluate(arguments: Arguments) -> int:
    from . import evaluate

    result = evaluate.evaluate(arguments.predictions, note=_say)
    evaluate.save_result(result, arguments.result)
    evaluate.write_section(arguments.document, evaluate.markdown(result))
    print(f"Written: {arguments.document} (results section), {arguments.result}")
    return 0


def _shift_arguments(parser: Parser) -> None:
    parser.add_argument("--document", type=Path, default=VALIDATION, help="page whose section on the shift is written")


def _shift(arguments: Arguments) -> int:
    from . import evaluate, shift

    evaluate.write_section(arguments.document, shift.markdown(_say), shift.START, shift.END)
    print(f"Written: {arguments.document} (section on the shift)")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


# Name, help, arguments, step.
STEPS: List[Tuple[str, str, Callable[[Parser], None], Callable[[Arguments], int]]] = [
    ("sample", "prepare the demo's rasters: the watershed, else the simulated valley", _sample_arguments, _sample),
    ("simulate", "make the simulated valley", _simulate_arguments, _simulate),
    ("baselines", "predict the protocol's folds with forests and logistic regression", _protocol_arguments, _baselines),
    ("evaluate", "make the protocol's tables and curves from stored predictions", _evaluate_arguments, _evaluate),
    ("shift", "compare the parts of the watershed, and features on them", _shift_arguments, _shift),
    ("random-forest", "fit and export the bundled Random Forest", _random_forest_arguments, _random_forest),
]


def main(argv: Optional[List[str]] = None) -> int:
    """Run one step; return its exit status (0 done, 2 bad input, 3 cancelled, 1 failure)."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__.splitlines()[0] if __doc__ else None
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="step")
    for name, text, add_arguments, step in STEPS:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add_arguments(command)
        command.set_defaults(step=step)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.step(arguments)
    except MisoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # A full disk or a read-only folder: the system's own words name the file.
        print(f"The step could not read or write a file: {error}", file=sys.stderr)
        return 1
    return status
