"""The command line of training: one subcommand per step, each importing only what it needs.

``sample`` and ``simulate`` run in the engine's environment, so nothing heavy may be imported at the top of this file.
A step is a function of the parsed arguments that returns an exit status; :data:`STEPS` lists them.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Tuple

from miso_qgis.engine.errors import InputError, MisoError

from .splits import SPLITS

if TYPE_CHECKING:
    from .bundled import Workshop
    from .crossvalidation import Workshop as DatasetWorkshop
    from .dataset import Dataset
    from .readers_report import ReadReport
    from .sites import Sites

REPOSITORY = Path(__file__).resolve().parents[1]
PREDICTIONS = REPOSITORY / "runs" / "predictions"
EVALUATION = REPOSITORY / "runs" / "evaluation.json"
VALIDATION = REPOSITORY / "docs" / "validation.md"
MODEL_FOLDER = REPOSITORY / "models" / "cpcrw"

RUN = REPOSITORY / "runs" / "bundle"
BUNDLED = "No dataset was given and the run folder holds none: the bundled model's watershed is trained on."

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
    parser.add_argument("--out", type=Path, required=True, help="folder for dem.tif and nlcd.tif; --alaska: a new one")
    parser.add_argument("--seed", type=int, default=1, help="seed of the landscape (default 1)")
    parser.add_argument("--alaska", action="store_true", help="10 m landscape with 19 channels, surveys and truth")
    parser.add_argument("--side-km", type=float, help="side of the --alaska landscape (default 20)")


def _simulate(arguments: Arguments) -> int:
    if arguments.alaska:
        return _simulate_alaska(arguments)
    from . import simulation

    if arguments.side_km is not None:
        raise InputError("Option --side-km", "the small valley has one size.", "", "Add --alaska, or leave it out.")
    paths = simulation.simulate_valley(arguments.out, arguments.seed)
    print(f"{simulation.SENTENCE}\nIn {arguments.out}: {', '.join(path.name for path in paths.values())}")
    return 0


def _simulate_alaska(arguments: Arguments) -> int:
    from . import simulated_alaska as alaska

    settings = alaska.Settings(arguments.seed, 20.0 if arguments.side_km is None else arguments.side_km)
    summary = alaska.simulate_alaska(arguments.out, settings, _say)
    sites = summary["sites"]
    print(
        f"{alaska.SENTENCE}\nIn {arguments.out}: {alaska.README} says what; {sites['all']} sites, "
        f"{sites['with_nsp']} with NSP, {sites['with_soil_order']} with a soil order."
    )
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
    parser.add_argument(
        "--out", type=Path, help="model folder (default models/cpcrw; with --dataset the folder model of the run)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample, folds and forests (default 1)")
    _dataset_forest_arguments(parser)


def _random_forest(arguments: Arguments) -> int:
    if getattr(arguments, "dataset", None) is not None:
        return _dataset_forest(arguments)
    from . import baselines

    out = arguments.out or MODEL_FOLDER
    settings = baselines.ship_forest(out, arguments.seed)
    print(f"{out / 'rf_nsp.onnx'}: {baselines.TREES} trees, {settings}")
    return 0


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run folders to report on; none: the watershed's protocol section",
    )
    parser.add_argument("--predictions", type=Path, default=PREDICTIONS, help="folder of the protocol's predictions")
    parser.add_argument("--document", type=Path, default=VALIDATION, help="page whose results section is written")
    parser.add_argument("--result", type=Path, default=EVALUATION, help="JSON file with all figures, curves included")
    report = parser.add_argument_group("report of runs")
    report.add_argument("--out", type=Path, help="folder for the report (default: report, in the first run)")
    report.add_argument(
        "--polygons", action="append", default=[], metavar="FILE", help="polygon layer; may be repeated"
    )
    report.add_argument(
        "--name-field", action="append", default=[], metavar="NAME", help="its field of names, in order"
    )
    report.add_argument("--maps", type=Path, metavar="FOLDER", help="folder with probability maps of both models")
    report.add_argument("--dataset", type=Path, help="dataset.json of the training area, for the model card")
    report.add_argument("--model", type=Path, help="model folder of these runs: gets scores, curves, limits and card")
    report.add_argument("--recall", type=float, help="recall of the equal-recall thresholds (default: MISO's at 0.5)")
    report.add_argument("--draws", type=int, default=1000, help="bootstrap draws (default 1000)")
    report.add_argument("--places", choices=("points", "map"), default="points", help="places of the watershed's runs")


def _evaluate(arguments: Arguments) -> int:
    from . import evaluate

    if arguments.runs:
        return _report(arguments)
    result = evaluate.evaluate(arguments.predictions, note=_say)
    evaluate.save_result(result, arguments.result)
    evaluate.write_section(arguments.document, evaluate.markdown(result))
    print(f"Written: {arguments.document} (results section), {arguments.result}")
    return 0


def _report(arguments: Arguments) -> int:
    from . import report

    names = [*arguments.name_field, *[None] * (len(arguments.polygons) - len(arguments.name_field))]
    request = report.Request(
        runs=tuple(arguments.runs),
        polygons=tuple(zip(arguments.polygons, names)),
        maps=arguments.maps,
        dataset=arguments.dataset,
        recall=arguments.recall,
        draws=arguments.draws,
        places=arguments.places,
    )
    made = report.make(request, _say)
    written = report.write(made, arguments.out or arguments.runs[0] / "report")
    print(f"Written: {', '.join(map(str, written))}")
    if arguments.model is not None:
        from . import assessed_folder
        from .dataset import read_dataset

        summary = None
        if arguments.dataset is not None:
            _say("summarising the training sites")
            predictions = report.load_predictions(request.runs, request.places)
            summary = assessed_folder.training_summary(read_dataset(arguments.dataset), predictions)
        assessed_folder.describe(arguments.model, made, summary)
        print(f"Written: {arguments.model} (manifest, card, digests)")
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


def _stage_arguments(parser: Parser) -> None:
    _run_arguments(parser)
    _dataset_arguments(parser)


def _dataset_arguments(parser: Parser) -> None:
    parser.set_defaults(seed=None)
    general = parser.add_argument_group(
        "on a dataset of your own (docs/training.md)",
        "A run that was begun goes on from its last checkpoint and knows its dataset, recipe, tasks and seed.",
    )
    general.add_argument("--dataset", type=Path, help="dataset.json, or its folder; begins a run on it")
    general.add_argument("--recipe", type=Path, help="TOML or JSON file of training settings")
    general.add_argument("--size", choices=("small", "paper"), help="preset of settings (default small)")
    general.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="tasks (default all of the dataset)")
    general.add_argument(
        "--satlas", type=Path, metavar="FILE", help="SatlasNet Sentinel-2 checkpoint that an encoder starts from"
    )
    general.add_argument(
        "--satlas-group", default="", metavar="GROUP", help="group of the nine bands (default satellite)"
    )
    general.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if any")
    general.add_argument(
        "--storage",
        default="auto",
        choices=("auto", "memory", "rasters"),
        help="hold all windows in memory, or read them when needed (default: memory where it fits)",
    )
    general.add_argument("--memory-mb", type=int, default=2000, help="what `--storage auto` may hold (default 2000)")
    general.add_argument("--checkpoint-steps", type=int, default=200, help="steps between checkpoints (default 200)")
    general.add_argument("--log-steps", type=int, default=10, help="steps between rows of the log (default 10)")
    general.add_argument("--no-tensorboard", action="store_true", help="write CSV logs only")
    general.add_argument(
        "--from-previous", action="store_true", help="go on from the checkpoint before the last, if that is damaged"
    )


def _is_on_dataset(arguments: Arguments) -> bool:
    """Whether a step is meant for a dataset; else it is the bundled watershed."""
    asked = any(getattr(arguments, name, None) for name in ("dataset", "satlas", "satlas_group"))
    return asked or (arguments.run / "config.json").is_file()


@contextmanager
def _on_dataset(arguments: Arguments) -> Iterator[DatasetWorkshop]:
    import torch

    from .crossvalidation import Means, begun
    from .recipes import read_recipe
    from .satlas_start import Asked
    from .trainer import Execution, Stop
    from .world import world

    if arguments.run == RUN:
        found, needed = "is the bundled model's.", "A run on a dataset needs a folder of its own."
        raise InputError(f'Run folder "{RUN}"', found, needed, "Add --run RUN.")
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    asked = arguments.recipe is not None or arguments.size is not None
    recipe = read_recipe(arguments.recipe, arguments.size) if asked else None
    execution = Execution(
        max(1, arguments.checkpoint_steps),
        max(1, arguments.log_steps),
        not arguments.no_tensorboard,
        arguments.from_previous,
    )
    with Stop() as stop, world(arguments.device) as processes:
        means = Means(processes, stop, execution, arguments.storage, arguments.memory_mb)
        note = _say if processes.leads else lambda text: None
        satlas = Asked(arguments.satlas, arguments.satlas_group)
        with begun(
            arguments.run, arguments.dataset, recipe, arguments.tasks, arguments.seed, means, note, satlas
        ) as workshop:
            yield workshop


def _pretrain(arguments: Arguments) -> int:
    if _is_on_dataset(arguments):
        with _on_dataset(arguments) as workshop:
            count = len(workshop.pretrained())
            workshop.note(f"{count} network(s) pretrained on covariates alone, in {arguments.run}")
        return 0
    _say(BUNDLED)
    count = len(_workshop(arguments).pretrained(_seed(arguments), _say))
    print(f"{count} networks pretrained on covariates alone, in {arguments.run}")
    return 0


def _train_arguments(parser: Parser) -> None:
    _stage_arguments(parser)
    parser.add_argument("--split", help="fit the folds of this split instead of all sites (cross-validate --help)")
    parser.add_argument("--folds", nargs="+", default=["all"], help="folds to fit (default all); numbers from 0")


def _train(arguments: Arguments) -> int:
    if _is_on_dataset(arguments):
        if arguments.split is not None:
            arguments.seeds = [1 if arguments.seed is None else arguments.seed]
            return _cross_validate(arguments)
        with _on_dataset(arguments) as workshop:
            count = len(workshop.fit_all().members)
            workshop.note(f"{count} network(s) fitted on {len(workshop.sites)} sites, in {arguments.run}")
        return 0
    from . import bundle

    _say(BUNDLED)
    print(f"Written: {bundle.train(_workshop(arguments), _seed(arguments), _say)}")
    return 0


def _seed(arguments: Arguments) -> int:
    """The seed that was asked for, else 1."""
    return 1 if arguments.seed is None else int(arguments.seed)


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
    parser.add_argument("--full-precision", action="store_true", help="store weights in single precision (a dataset's)")


def _export_run_arguments(parser: Parser) -> None:
    _export_arguments(parser)
    _dataset_arguments(parser)


def _export_dataset(arguments: Arguments) -> int:
    from .export import export_whole

    if arguments.single_input is None and arguments.out == MODEL_FOLDER:
        found, needed = "was not given.", "The model folder of a run on a dataset needs a name."
        raise InputError("Option --out", found, needed, "Add --out models/NAME.")
    from . import modelfolder

    with _on_dataset(arguments) as workshop:
        if not workshop.is_finished("fit/all"):
            needed, remedy = "Networks fitted on all sites are needed.", "Run `python -m training train` on it first."
            raise InputError(f'Run folder "{arguments.run}"', "is not trained to its end.", needed, remedy)
        members = workshop.fit_all().members
        if arguments.single_input is not None:
            written = export_whole(members, arguments.single_input, workshop.run.config.recipe.temperature)
        else:
            modelfolder.write(workshop, members, arguments.out, half=not arguments.full_precision)
            written = arguments.out
    print(f"Written: {written}")
    return 0


def _export(arguments: Arguments) -> int:
    if _is_on_dataset(arguments):
        return _export_dataset(arguments)
    from . import bundle
    from .export import export_whole

    arguments.seed = _seed(arguments)
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


def _source_arguments(parser: Parser) -> None:
    parser.add_argument("source", type=Path, help="file of observations, or dataset.json (or its folder)")
    parser.add_argument("--columns", nargs="+", default=[], metavar="FIELD=COLUMN", help="columns with other names")
    parser.add_argument("--crs", default="", help="CRS of x and y (or of lon and lat)")


def _observed(arguments: Arguments, values: bool = False) -> Tuple[Sites, ReadReport, Optional[Dataset]]:
    from . import readers
    from .dataset import FILE, ObservationFile, read_dataset

    source: Path = arguments.source
    if source.is_dir() or source.name == FILE:
        dataset = read_dataset(source)
        return (*readers.read_observations(dataset, values=values), dataset)
    wrong = [text for text in arguments.columns if not all(text.partition("="))]
    if wrong:
        raise InputError("--columns", f'"{wrong[0]}" names no column.', "FIELD=COLUMN is needed, such as nsp=pf1m.")
    columns = {field: column for field, _, column in (text.partition("=") for text in arguments.columns)}
    return (*readers.read_files([ObservationFile(str(source), columns, arguments.crs)]), None)


def _observations_arguments(parser: Parser) -> None:
    _source_arguments(parser)
    parser.add_argument("--values", action="store_true", help="look up a dataset's rasters at every site (slow)")
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    parser.add_argument("--out", type=Path, help="write the sites that are kept to this CSV")


def _observations(arguments: Arguments) -> int:
    import json

    from . import readers

    sites, report, _ = _observed(arguments, arguments.values)
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.out is not None:
        readers.write_sites(sites, arguments.out)
    return 0


def _splits_arguments(parser: Parser) -> None:
    _source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, split files and splits.json")
    names = ("random", "SH-1km", "SH-10km", "kNNDM")
    parser.add_argument("--splits", nargs="*", default=list(names), choices=names, help="which (default all)")
    parser.add_argument("--released", nargs="+", type=Path, default=[], help="released split files to read as well")
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the dealing (default 1)")


def _splits(arguments: Arguments) -> int:
    from . import split_pictures

    sites, report, dataset = _observed(arguments)
    print(f"{report.kept} of {report.records} records kept (python -m training observations says why).")
    title = arguments.source.stem if dataset is None else dataset.title
    if dataset is not None and dataset.simulated:
        title += " (simulated)"
    _, result = split_pictures.describe_splits(
        sites,
        arguments.out,
        title,
        dataset,
        arguments.splits,
        arguments.released,
        arguments.folds,
        arguments.seed,
    )
    print(f"{split_pictures.as_text(result)}\nWritten: {arguments.out}")
    return 0


def _tiles_arguments(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, help="folder with HDF5 tiles (AK050H48V07.h5, ...)")
    parser.add_argument("--out", type=Path, required=True, help="folder for GeoTIFFs, mosaics and inputs.json")
    parser.add_argument("--bands", nargs="+", default=[], help="names of the channels, where there are not 9 or 10")
    parser.add_argument("--nodata", nargs="+", type=float, default=[], help="more values that mean missing data")
    parser.add_argument("--pixels", type=int, default=5000, help="rows and columns of a tile (default 5000)")


def _tiles(arguments: Arguments) -> int:
    from . import tiles

    mosaics = tiles.convert(
        arguments.folder, arguments.out, pixels=arguments.pixels, bands=arguments.bands, nodata=arguments.nodata
    )
    for mosaic in mosaics:
        print(f"Written: {mosaic.path}, {len(mosaic.tiles)} tiles, bands {', '.join(mosaic.product.inputs)}")
    print(f"Written: {arguments.out / 'inputs.json'}: bounds, inputs, sources and groups for a dataset.json there")
    return 0


def _osd_arguments(parser: Parser) -> None:
    parser.add_argument("archive", type=Path, help="tar archive or folder of official soil series descriptions")
    parser.add_argument("--out", type=Path, required=True, help="CSV of observations to write")


def _osd(arguments: Arguments) -> int:
    from . import osd

    found = osd.read_archive(arguments.archive)
    osd.write_table(found, arguments.out)
    print(f"{osd.summary(found)}\nWritten: {arguments.out}")
    return 0


def _dataset_forest_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("on a dataset, in place of the bundled watershed")
    group.add_argument("--dataset", type=Path, metavar="FILE", help="dataset.json, or its folder")
    group.add_argument("--run", type=Path, metavar="R", help="run folder that gets the out-of-fold predictions")
    group.add_argument("--task", nargs="+", default=[], help="nsp, soil_order (default: those of the dataset)")
    group.add_argument("--split", nargs="+", default=["random", "SH-1km"], help="splits (default random SH-1km)")
    group.add_argument(
        "--search", type=int, default=0, metavar="N", help="settings to try by random search; 0: the paper's (default)"
    )
    group.add_argument("--score", default="", help="of the search: pr_auc, log_loss, macro_f1 (default by task)")
    group.add_argument(
        "--buffer", type=float, nargs="+", default=[50.0], metavar="M", help="radii of the disc means, m (default 50)"
    )
    group.add_argument("--no-coordinates", action="store_true", help="leave x and y out of the features")
    group.add_argument("--trees", type=int, default=253, help="without a search (default 253)")
    group.add_argument("--leaf", type=int, default=1, help="sites per leaf at least, without a search (default 1)")
    group.add_argument("--leaf-bits", type=int, help="round the exported leaf values to this many bits (default exact)")
    group.add_argument(
        "--threshold-bits", type=int, help="round the exported thresholds to this many bits (default exact)"
    )
    group.add_argument("--jobs", type=int, default=1, help="processor threads (default 1)")


def _dataset_forest(arguments: Arguments) -> int:
    from . import forest_run
    from .dataset import read_dataset
    from .forest import Recipe
    from .forest_export import Compression
    from .forest_fit import ForestSettings
    from .forest_search import Search

    if arguments.run is None:
        needed = "A folder for the out-of-fold predictions is needed."
        raise InputError("Run folder", "none is given.", needed, "Add --run FOLDER.")
    recipe = Recipe(
        buffers_m=tuple(arguments.buffer),
        coordinates=not arguments.no_coordinates,
        settings=ForestSettings(trees=arguments.trees, min_samples_leaf=arguments.leaf),
        search=Search(iterations=arguments.search, score=arguments.score) if arguments.search > 0 else None,
        compression=Compression(arguments.leaf_bits, arguments.threshold_bits),
        seed=arguments.seed,
        jobs=arguments.jobs,
    )
    out = arguments.out or arguments.run / "model"
    written = forest_run.run(
        read_dataset(arguments.dataset), arguments.run, out, recipe, arguments.task, arguments.split, _say
    )
    print("\n".join(str(path) for path in written))
    return 0


def _cross_validate_arguments(parser: Parser) -> None:
    _stage_arguments(parser)
    parser.add_argument("--split", required=True, help="random, SH-1km, SH-10km, kNNDM, or a released split file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one cross-validation each (default 1)")
    parser.add_argument("--folds", nargs="+", default=["all"], help="folds to fit (default all); numbers from 0")


def _cross_validate(arguments: Arguments) -> int:
    from .crossvalidation import cross_validate

    try:
        folds = None if arguments.folds == ["all"] else [int(fold) for fold in arguments.folds]
    except ValueError as error:
        found = f"it is {' '.join(arguments.folds)}."
        raise InputError("Option --folds", found, "Numbers, or all, are needed.", "Correct it.") from error
    with _on_dataset(arguments) as workshop:
        for path in cross_validate(workshop, arguments.split, arguments.seeds, folds):
            workshop.note(f"Written: {path}")
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
    ("simulate", "make the simulated valley, or a simulated Alaska", _simulate_arguments, _simulate),
    ("baselines", "predict the protocol's folds with forests and logistic regression", _protocol_arguments, _baselines),
    (
        "evaluate",
        "report on runs, or make the protocol's tables from stored predictions",
        _evaluate_arguments,
        _evaluate,
    ),
    ("shift", "compare the parts of the watershed, and features on them", _shift_arguments, _shift),
    ("miso", "predict the protocol's folds with MISO", _miso_arguments, _miso),
    (
        "pretrain",
        "pretrain the bundled networks, or a dataset's, on covariates alone",
        _stage_arguments,
        _pretrain,
    ),
    (
        "train",
        "pretrain (where that is not done) and fit networks, bundled or a dataset's",
        _train_arguments,
        _train,
    ),
    ("export", "write the model folder from trained networks", _export_run_arguments, _export),
    ("bundle", "make the bundled model: random-forest, train, export", _export_arguments, _bundle),
    ("random-forest", "fit and export the bundled Random Forest", _random_forest_arguments, _random_forest),
    ("observations", "read observations and report what was dropped and why", _observations_arguments, _observations),
    ("splits", "make spatial folds, their maps and distance curves", _splits_arguments, _splits),
    ("tiles", "convert HDF5 tiles to mosaics that a dataset reads", _tiles_arguments, _tiles),
    ("osd", "parse official soil series descriptions into observations", _osd_arguments, _osd),
    ("cross-validate", "predict a dataset's folds with MISO", _cross_validate_arguments, _cross_validate),
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
