"""The command line of training: one subcommand per step, each importing only what it needs.

``sample`` and ``simulate`` run in the engine's environment, so nothing heavy may be imported at the top of this file.
A step is a function of the parsed arguments that returns an exit status; :data:`STEPS` lists them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Optional, Tuple

from miso_qgis.engine.errors import MisoError

from .splits import SPLITS

if TYPE_CHECKING:
    from .bundled import Workshop

REPOSITORY = Path(__file__).resolve().parents[1]
PREDICTIONS = REPOSITORY / "runs" / "predictions"
EVALUATION = REPOSITORY / "runs" / "evaluation.json"
VALIDATION = REPOSITORY / "docs" / "validation.md"
MODEL_FOLDER = REPOSITORY / "models" / "cpcrw"

RUN = REPOSITORY / "runs" / "bundle"

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


def _run_arguments(parser: Parser) -> None:
    parser.add_argument("--run", type=Path, default=RUN, help="run folder: networks, configuration, environment")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample and the networks (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1; more hardly helps)")


def _workshop(arguments: Arguments) -> Workshop:
    import torch

    from .bundled import Workshop

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # tiny gradients are many times slower than zero on most processors
    return Workshop.of(arguments.run)


def _pretrain(arguments: Arguments) -> int:
    count = len(_workshop(arguments).pretrained(arguments.seed, _say))
    print(f"{count} networks pretrained on covariates alone, in {arguments.run}")
    return 0


def _train(arguments: Arguments) -> int:
    from . import bundle

    print(f"Written: {bundle.train(_workshop(arguments), arguments.seed, _say)}")
    return 0


def _miso_arguments(parser: Parser) -> None:
    _protocol_arguments(parser)
    parser.add_argument("--run", type=Path, default=RUN, help="run folder that keeps pretrained networks")
    parser.add_argument("--members", type=int, help="networks to average (default: as many as in the bundle)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1; more hardly helps)")


def _miso(arguments: Arguments) -> int:
    from .bundled import predict_out_of_fold

    workshop = _workshop(arguments)
    if arguments.members is not None:
        workshop = replace(workshop, training=replace(workshop.training, members=arguments.members))
    predict_out_of_fold(workshop, arguments.splits, arguments.seeds, arguments.predictions, _say)
    return 0


def _export_arguments(parser: Parser) -> None:
    _run_arguments(parser)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="model folder (default models/cpcrw)")
    parser.add_argument("--result", type=Path, default=EVALUATION, help="JSON that `evaluate` wrote, for the card")
    parser.add_argument(
        "--keep-graphs", action="store_true", help="only rewrite manifest, card and digests, after a new evaluation"
    )
    parser.add_argument(
        "--single-input",
        type=Path,
        help="write one graph with one input and all maps to this file instead; not shipped",
    )


def _export(arguments: Arguments) -> int:
    from . import bundle
    from .export import export_whole

    workshop = _workshop(arguments)
    members = bundle.load_members(workshop, arguments.seed)
    if arguments.single_input is not None:
        print(f"Written: {export_whole(members, arguments.single_input, workshop.training.temperature)}")
        return 0
    bundle.assemble(
        workshop, members, arguments.seed, arguments.out, arguments.result, _say, keep_graphs=arguments.keep_graphs
    )
    print(f"Written: {arguments.out}")
    return 0


def _bundle(arguments: Arguments) -> int:
    for step in (_random_forest, _train, _export):
        step(arguments)
    return 0


def _conformance_arguments(parser: Parser) -> None:
    parser.add_argument("file", type=Path, nargs="+", help="file of vectors (.npz) that the released code wrote")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")


def _conformance(arguments: Arguments) -> int:
    import torch

    from .released_conformance import conform, table

    torch.set_num_threads(arguments.threads)
    agree = True
    for path in arguments.file:
        differences = conform(path)
        print(f"{path}\n{table(differences)}", flush=True)
        agree = agree and all(one.agrees for one in differences)
    return 0 if agree else 1


def _import_released_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint (.pth) that was trained with the released code")
    parser.add_argument("--task", required=True, choices=("nsp", "soil_order"), help="what the network answers")
    parser.add_argument("--out", type=Path, required=True, help="model folder to make; it must not exist")
    parser.add_argument("--half", action="store_true", help="store weights in half precision: half the size, 0.001 off")
    parser.add_argument("--licence", help="licence of the weights, for manifest and card (default: not stated)")
    parser.add_argument(
        "--tpi-statistics",
        type=float,
        nargs=4,
        metavar=("MEAN1", "SD1", "MEAN4", "SD4"),
        help="topographic position index of the training rasters at radius 1 and 4 cells, metres, if they are known",
    )
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")


def _import_released(arguments: Arguments) -> int:
    import torch

    from .released_import import ImportSettings, import_checkpoint

    torch.set_num_threads(arguments.threads)
    settings = ImportSettings(arguments.task, half=arguments.half)
    if arguments.licence is not None:
        settings = replace(settings, licence=arguments.licence)
    if arguments.tpi_statistics is not None:
        settings = replace(settings, tpi_statistics=tuple(arguments.tpi_statistics))
    manifest = import_checkpoint(arguments.checkpoint, arguments.out, settings, _say)
    print(f"Written: {arguments.out} ({manifest.title})")
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
    ("miso", "predict the protocol's folds with MISO", _miso_arguments, _miso),
    ("pretrain", "pretrain the bundled networks on covariates alone", _run_arguments, _pretrain),
    ("train", "pretrain (where that is not done) and fit the bundled networks", _run_arguments, _train),
    ("export", "write the model folder from trained networks", _export_arguments, _export),
    ("bundle", "make the bundled model: random-forest, train, export", _export_arguments, _bundle),
    ("random-forest", "fit and export the bundled Random Forest", _random_forest_arguments, _random_forest),
    ("conformance", "compare our code with vectors of the released code", _conformance_arguments, _conformance),
    (
        "import-released",
        "make a model folder from a checkpoint of the released code",
        _import_released_arguments,
        _import_released,
    ),
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
