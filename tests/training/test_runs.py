"""Runs on a dataset: what they leave, how they go on, what they refuse, and the model folder that comes of them."""

import csv
import dataclasses
import io
import json
import re
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

torch.set_num_threads(1)

import rasterio  # noqa: E402
import tiny_dataset  # noqa: E402

from miso_qgis.engine.errors import Cancelled, InputError, OutputError, RuntimeFailure  # noqa: E402
from training import checkpoints, cli, modelfolder, outoffold, runs  # noqa: E402
from training.asking import ask  # noqa: E402
from training.crossvalidation import Means, begun, cross_validate  # noqa: E402
from training.logs import StageLog, read, words  # noqa: E402
from training.loop import with_parameters  # noqa: E402
from training.recipes import read_recipe  # noqa: E402
from training.spatial_splits import Split  # noqa: E402
from training.trainer import Execution, Stop  # noqa: E402
from training.world import World  # noqa: E402

QUIET = Execution(checkpoint_steps=2, log_steps=1, tensorboard=False)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    tiny_dataset.write(folder / "tiny")
    (folder / "recipe.toml").write_text(tiny_dataset.RECIPE)
    return folder


@contextmanager
def workshop(ground, run, *, notes=None, execution=QUIET, stop=None, tasks=(), **changes):
    recipe = dataclasses.replace(read_recipe(ground / "recipe.toml"), **changes)
    means = Means(World(), stop or Stop(), execution)
    note = (lambda text: None) if notes is None else notes.append
    with begun(run, ground / "tiny" / "dataset.json", recipe, tasks, None, means, note) as found:
        yield found


@pytest.fixture(scope="module")
def trained(ground, tmp_path_factory):
    """A run that is pretrained, fitted and cross-validated."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    with workshop(ground, run) as shop:
        shop.fit_all()
        cross_validate(shop, "random", [1])
    return run


def split(name, fold):
    """A split of which each fold learns from all sites that it does not test."""
    fold = np.asarray(fold)
    numbers = np.arange(fold.max() + 1)[:, None]
    return Split(name, 1, fold.astype(np.int16), np.arange(fold.size), fold[None] != numbers)


def final(run, stage):
    (path,) = (run / "checkpoints" / stage).glob("final-*.pt")
    return torch.load(path, weights_only=True)["parameters"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What a run leaves


def test_a_run_holds_what_is_needed_to_repeat_it(ground, trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["format"], config["dataset"], config["seed"]) == (1, "tiny", 1)
    assert config["recipe"]["fit"]["steps"] == 8
    assert config["model"]["groups"][0]["features"][0]["scale"] > 0
    data = json.loads((trained / "data.json").read_text())
    assert set(data["files"]) == {"dataset.json", "bands.tif", "sites.csv"}
    sites = data["sites"]
    assert sites["reading"]["records"] == 60
    assert sites["used"] + sites["without_a_value_in_some_channel"] == sites["reading"]["kept"]
    assert sites["labels"]["nsp"]["present"] > 5
    environment = json.loads((trained / "environment.json").read_text())
    assert environment[0]["torch"] == torch.__version__
    stages = {
        path.parent.relative_to(trained / "checkpoints").as_posix() for path in trained.glob("checkpoints/**/*.pt")
    }
    assert {"pretrain/0", "fit/all/0", "cv/random/1/4/0"} <= stages
    rows = read(trained / "logs" / "fit" / "all" / "0.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert all(float(row["loss"]) > 0 and float(row["gradient_norm"]) > 0 for row in rows)


def test_a_run_of_the_same_seed_gives_the_same_weights(ground, trained, tmp_path):
    with workshop(ground, tmp_path / "again") as shop:
        shop.fit_all()
    assert equal(final(trained, "fit/all/0"), final(tmp_path / "again", "fit/all/0"))
    with workshop(
        ground, tmp_path / "other", pretrain=dataclasses.replace(read_recipe(None).pretrain, steps=0)
    ) as shop:
        shop.fit_all()
    assert not (tmp_path / "other" / "checkpoints" / "pretrain").exists()
    assert not equal(final(trained, "fit/all/0"), final(tmp_path / "other", "fit/all/0"))


def test_training_learns_what_the_channels_show(tmp_path):
    tiny_dataset.write(tmp_path / "tiny", sites=800)
    (tmp_path / "recipe.toml").write_text(tiny_dataset.RECIPE)
    recipe = read_recipe(tmp_path / "recipe.toml")
    fit = dataclasses.replace(recipe.fit, steps=70, learning_rate=5e-3)
    window = dataclasses.replace(recipe.window, points=100)
    with workshop(tmp_path, tmp_path / "run", fit=fit, window=window) as shop:
        members = shop.fit_all().members
        sites = shop.sites
        found = ask(members, shop.scene, sites.x, sites.y, shop.run.config.recipe)
    known = sites.labelled("nsp")
    present = sites.labels["nsp"][known] == 1
    chance = found["nsp"][known, 0]
    assert chance[present].mean() > chance[~present].mean() + 0.2
    losses = [float(row["soil_order"]) for row in read(tmp_path / "run" / "logs" / "fit" / "all" / "0.csv")]
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.3


def test_several_networks_are_averaged(ground, tmp_path):
    with workshop(ground, tmp_path / "run", members=2) as shop:
        members = shop.fit_all().members
        assert not equal(dict(members[0].named_parameters()), dict(members[1].named_parameters()))
        x, y = shop.sites.x[:5], shop.sites.y[:5]
        each = [ask([member], shop.scene, x, y, shop.run.config.recipe)["nsp"] for member in members]
        both = ask(members, shop.scene, x, y, shop.run.config.recipe)["nsp"]
    # Where one window answers alone, the logits' mean is the logit of the answer.
    assert ((np.minimum(*each) - 1e-6 <= both) & (both <= np.maximum(*each) + 1e-6)).all()


# Out-of-fold predictions


def test_predictions_are_those_of_networks_that_did_not_see_the_fold(ground, trained):
    found = {one.task: one for one in outoffold.load_run(trained)}
    assert set(found) == {"nsp", "soil_order"}
    with workshop(ground, trained) as shop:
        for task, one in found.items():
            known = shop.sites.labelled(task)
            assert one.id.tolist() == shop.sites.id[known].tolist()
            assert np.array_equal(one.label, shop.sites.labels[task][known])
            assert one.facts["simulated"] is True
            assert one.facts["parameters"] > 1000
        nsp = found["nsp"]
        for fold in np.unique(nsp.fold):
            held = nsp.fold == fold
            member = with_parameters(shop.run.config.model, final(trained, f"cv/random/1/{fold}/0"))
            answer = ask([member], shop.scene, nsp.x[held], nsp.y[held], shop.run.config.recipe)["nsp"][:, 0]
            assert np.allclose(nsp.probability[held, 1], answer, atol=1e-6)


def test_folds_can_be_fitted_one_at_a_time(ground, trained, tmp_path):
    notes = []
    with workshop(ground, tmp_path / "run", notes=notes) as shop:
        assert cross_validate(shop, "random", [1], [3]) == []
        assert "folds 0, 1, 2, 4 are not fitted yet" in notes[-1]
        with pytest.raises(InputError, match="fold 7 holds no site"):
            cross_validate(shop, "random", [1], [7])
        assert len(cross_validate(shop, "random", [1])) == 2
    assert equal(final(trained, "cv/random/1/3/0"), final(tmp_path / "run", "cv/random/1/3/0"))


def test_a_fold_without_sites_is_left_out_and_said(ground, tmp_path):
    def deal(sites, name, seed, dataset):
        return split(name, np.where(np.arange(len(sites)) % 2, 0, 2))

    notes = []
    with workshop(ground, tmp_path / "run", notes=notes) as shop:
        written = cross_validate(shop, "odd", [1], deal=deal)
    assert any("no site is in fold 1" in note for note in notes)
    assert sorted(set(outoffold.load(written[0]).fold.tolist())) == [0, 2]


def test_a_class_that_a_fold_cannot_learn_is_said_and_the_others_are_learned(ground, tmp_path):
    def deal(sites, name, seed, dataset):
        return split(name, np.where(sites.labels["nsp"] == 1, 0, 1))

    notes = []
    with workshop(ground, tmp_path / "run", notes=notes) as shop:
        written = cross_validate(shop, "by-class", [1], deal=deal)
    assert any("no training site of nsp is present" in note for note in notes)
    assert np.isfinite(outoffold.load(written[0]).probability).all()


def test_a_fold_that_leaves_a_task_without_labels_is_refused(ground, tmp_path):
    def deal(sites, name, seed, dataset):
        return split(name, np.where(sites.labels["nsp"] >= 0, 0, 1))

    with workshop(ground, tmp_path / "run") as shop, pytest.raises(InputError, match="no site has a label of nsp"):
        cross_validate(shop, "all-of-a-task", [1], deal=deal)


def test_a_checkpoint_of_other_folds_is_not_taken_for_these(ground, tmp_path):
    def deal(shift):
        return lambda sites, name, seed, dataset: split(name, (np.arange(len(sites)) + shift) // 7 % 2)

    with workshop(ground, tmp_path / "run") as shop:
        cross_validate(shop, "mine", [1], deal=deal(0))
        with pytest.raises(InputError, match="other data or other sites"):
            cross_validate(shop, "mine", [1], deal=deal(3))


# Going on


class StopsAt(Stop):
    """Asks to stop once a stage has come so far, as a signal would."""

    def __init__(self, run, stage, step):
        self._log, self._step = run / "logs" / f"{stage}.csv", step
        super().__init__()

    @property
    def asked(self):
        return len(read(self._log)) >= self._step

    @asked.setter
    def asked(self, value):
        pass


@pytest.mark.parametrize("storage", ["memory", "rasters"])
def test_a_stopped_run_goes_on_to_the_same_weights_and_the_same_log(ground, trained, tmp_path, storage):
    run = tmp_path / "run"
    recipe = read_recipe(ground / "recipe.toml")
    path = ground / "tiny" / "dataset.json"
    for stage, step in (("pretrain/0", 3), ("fit/all/0", 5)):
        means = Means(World(), StopsAt(run, stage, step), QUIET, storage)
        with (
            begun(run, path, recipe, (), None, means, lambda text: None) as shop,
            pytest.raises(Cancelled, match=f"stopped at step {step} of"),
        ):
            shop.fit_all()
    with begun(run, path, None, (), None, Means(World(), Stop(), QUIET, storage), lambda text: None) as shop:
        shop.fit_all()
    assert equal(final(run, "fit/all/0"), final(trained, "fit/all/0"))
    for stage in ("pretrain/0", "fit/all/0"):
        logs = [(folder / "logs" / f"{stage}.csv").read_text() for folder in (run, trained)]
        for one, other in zip(*(csv.DictReader(io.StringIO(text)) for text in logs)):
            for column in set(one) - {"seconds", "windows_per_s"}:
                assert one[column] == other[column]
        assert len(logs[0].splitlines()) == len(logs[1].splitlines())


def broken_off(ground, run):
    """A run that was stopped after step 7 of its fit, with the checkpoints of steps 6 and 7."""
    with (
        workshop(ground, run, stop=StopsAt(run, "fit/all/0", 7)) as shop,
        pytest.raises(Cancelled),
    ):
        shop.fit_all()
    return checkpoints.stored(run / "checkpoints" / "fit" / "all" / "0")


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_refused(ground, trained, tmp_path):
    run = tmp_path / "run"
    kept = broken_off(ground, run)
    assert [step for step, _ in kept] == [6, 7]
    newest = kept[-1][1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    with workshop(ground, run) as shop, pytest.raises(InputError, match="cut off or altered") as caught:
        shop.fit_all()
    assert "step 6" in str(caught.value)
    assert "--from-previous" in str(caught.value)
    with workshop(ground, run, execution=dataclasses.replace(QUIET, from_previous=True)) as shop:
        shop.fit_all()
    assert equal(final(run, "fit/all/0"), final(trained, "fit/all/0"))


def test_a_flipped_bit_in_a_result_is_refused(ground, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (path,) = (run / "checkpoints" / "fit" / "all" / "0").glob("final-*.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with workshop(ground, run) as shop, pytest.raises(InputError, match="cut off or altered"):
        shop.fit_all()


def test_half_a_checkpoint_of_a_killed_run_is_swept_and_not_read(ground, tmp_path):
    run = tmp_path / "run"
    broken_off(ground, run)
    folder = run / "checkpoints" / "fit" / "all" / "0"
    (folder / ".000000008.part").write_bytes(b"half")
    with workshop(ground, run) as shop:
        shop.fit_all()
    assert [path.name[:5] for path in folder.iterdir()] == ["final"]


def test_a_log_that_broke_off_in_a_line_goes_on(tmp_path):
    columns = ["loss"]
    with StageLog(tmp_path, "s", columns, 4, 0, tensorboard=False) as log:
        log.row(1, {"loss": 2.0})
        log.row(2, {"loss": 1.5})
    with (tmp_path / "s.csv").open("a") as target:
        target.write("3,1.0")  # no line end
    with StageLog(tmp_path, "s", columns, 4, 2, tensorboard=False) as log:
        log.row(3, {"loss": 1.25})
    assert [(row["step"], row["loss"]) for row in read(tmp_path / "s.csv")] == [("1", "2"), ("2", "1.5"), ("3", "1.25")]


def test_the_bar_says_how_long_it_takes_still(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with StageLog(tmp_path, "fit", ["loss"], 10, 0, tensorboard=False, out=out) as log:
        log._started -= 50.0  # 5 steps took 50 s
        log.bar(5, 0.5)
    assert "fit [############............] 5/10, loss 0.500, 50 s left" in out.getvalue()
    assert (words(41.4), words(200), words(7500)) == ("41 s", "3 min", "2 h 5 min")


def test_tensorboard_files_are_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed in this environment")
    with StageLog(tmp_path, "fit/0", ["loss"], 2, 0, tensorboard=True) as log:
        log.row(1, {"loss": 2.0})
    assert list((tmp_path / "tensorboard" / "fit" / "0").glob("events*"))


# What a run refuses


def test_a_loss_that_is_no_number_stops_with_step_and_windows_and_keeps_the_checkpoint(ground, tmp_path):
    fit = dataclasses.replace(read_recipe(ground / "recipe.toml").fit, learning_rate=1e38, warmup=0.9)
    run = tmp_path / "run"
    with workshop(ground, run, fit=fit) as shop, pytest.raises(RuntimeFailure) as caught:
        shop.fit_all()
    text = str(caught.value)
    assert "became nan at step" in text or "became inf at step" in text
    assert re.search(r"centred at \(30\d{4}, 169\d{4}\), ", text)
    assert "(EPSG:3338)" in text
    assert "Look for absurd values in the rasters" in text
    kept = checkpoints.stored(run / "checkpoints" / "fit" / "all" / "0")
    if kept:
        assert f"checkpoint of step {kept[-1][0]} is kept" in text
        state = torch.load(kept[-1][1], weights_only=True)
        assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_another_configuration_is_refused_and_every_difference_named(ground, trained):
    fit = dataclasses.replace(read_recipe(ground / "recipe.toml").fit, steps=9)
    with (
        pytest.raises(InputError, match=r"recipe\.fit\.steps is 8, not 9; recipe\.members is 1, not 2; tasks are"),
        workshop(ground, trained, fit=fit, members=2, tasks=["nsp"]),
    ):
        pass


def test_changed_data_are_refused_by_file(ground, trained, tmp_path):
    moved = tmp_path / "tiny"
    shutil.copytree(ground / "tiny", moved)
    means = Means(World(), Stop(), QUIET)
    with begun(trained, moved / "dataset.json", None, (), None, means, lambda text: None):
        pass  # the same data elsewhere will do
    with (moved / "sites.csv").open("a") as target:
        target.write(f"new,{tiny_dataset.LEFT + 50},{tiny_dataset.TOP - 50},,1,\n")
    with (
        pytest.raises(InputError, match=r'"sites.csv" of the run .* has changed'),
        begun(trained, moved / "dataset.json", None, (), None, means, lambda text: None),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": 99}, "format is 99: it was written by another version"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_a_run_of_another_version_is_refused(ground, trained, tmp_path, change, word):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=word):
        runs.open_run(run)
    (run / "config.json").write_text(json.dumps(config)[:100])
    with pytest.raises(InputError, match="cannot be used"):
        runs.open_run(run)


def test_a_checkpoint_of_another_run_is_refused(ground, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained / "checkpoints", run / "checkpoints")
    for name in ("config.json", "data.json"):
        shutil.copy(trained / name, run / name)
    config = json.loads((run / "config.json").read_text())
    config["seed"] = 2
    (run / "config.json").write_text(json.dumps(config))
    means = Means(World(), Stop(), QUIET)
    with (
        begun(run, None, None, (), None, means, lambda text: None) as shop,
        pytest.raises(InputError, match="made with another configuration"),
    ):
        shop.fit_all()


def test_sites_outside_and_in_holes_are_left_out_and_counted(ground, tmp_path):
    shutil.copytree(ground / "tiny", tmp_path / "tiny")
    with (tmp_path / "tiny" / "sites.csv").open("a") as target:
        target.write(f"out,{tiny_dataset.LEFT - 500},{tiny_dataset.TOP - 50},,1,\n")
        target.write(f"hole,{tiny_dataset.LEFT + 1000},{tiny_dataset.TOP - 250},,1,\n")
    shutil.copy(ground / "recipe.toml", tmp_path)
    notes = []
    with workshop(tmp_path, tmp_path / "run", notes=notes) as shop:
        assert not {"out", "hole"} & set(shop.sites.id.tolist())
        reasons = {one["reason"]: one["count"] for one in shop.run.data.sites["reading"]["findings"]}
        assert reasons["outside_grid"] == 1
        assert shop.run.data.sites["without_a_value_in_some_channel"] >= 1
    assert any("where a channel has no value" in note for note in notes)


# The model folder


def test_a_map_of_the_exported_model_has_the_networks_answers(ground, tmp_path):
    """Torch at points, torch at pixel centres, and the engine's map through both graphs are one: 1e-4."""
    from miso_qgis.engine.messages import PredictJob, RasterSource
    from miso_qgis.engine.predict import predict
    from miso_qgis.engine.progress import Silent

    out = tmp_path / "models" / "tiny"
    fit = dataclasses.replace(read_recipe(ground / "recipe.toml").fit, steps=20)
    with workshop(ground, tmp_path / "run", temperature=1.5, fit=fit) as shop:
        members = shop.fit_all().members
        manifest = modelfolder.write(shop, members, out, half=False)
        rows, columns = (grid.ravel() + 0.5 for grid in np.meshgrid(np.arange(102), np.arange(131), indexing="ij"))
        x, y = shop.scene.metres(rows, columns).T
        asked = ask(members, shop.scene, x, y, shop.run.config.recipe)
        known = shop.scene.known_at(rows, columns)
        recipe = shop.run.config.recipe
        with pytest.raises(OutputError, match="holds other files"):
            modelfolder.write(shop, members, ground)
    assert manifest.simulated
    assert manifest.title == "Tiny ground (simulated)"
    assert list(manifest.tasks) == ["nsp", "soil_order"]
    assert manifest.window.stride_px == recipe.stride_px
    assert manifest.channels[0].range is not None
    assert "Not for decisions" in (out / "MODEL_CARD.md").read_text()
    bands = str(ground / "tiny" / "bands.tif")
    inputs = {name: RasterSource(bands, band + 1) for band, name in enumerate(("red", "green", "rain", "cover"))}
    job = PredictJob(str(out), inputs, str(tmp_path / "maps"), models=("miso",), provider="cpu", threads=1)
    result = predict(job, Silent())
    for task, values in asked.items():
        with rasterio.open(result.outputs[f"{task}_probability_miso"]) as source:
            mapped = source.read().reshape(values.shape[1], -1).T
        valid = mapped[:, 0] != -9999
        # A cell's mean needs one pixel; a map's pixel needs its own.
        assert valid.sum() == known.sum()
        assert np.abs(mapped[valid] - values[valid]).max() < 1e-4
        if values.shape[1] > 1:
            assert np.allclose(mapped[valid].sum(axis=1), 1.0, atol=1e-5)
            assert mapped[valid].std(axis=0).max() > 1e-4  # the map is no constant


# The command line


def command(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_the_command_line_trains_and_refuses_with_the_contracts_exit_statuses(ground, tmp_path, capsys):
    run, dataset, recipe = tmp_path / "run", ground / "tiny" / "dataset.json", ground / "recipe.toml"
    general = ("--run", run, "--no-tensorboard")
    assert command("pretrain", "--dataset", dataset, "--recipe", recipe, "--tasks", "nsp", *general) == 0
    assert "pretrained on covariates alone" in capsys.readouterr().out
    assert command("export", "--run", run, "--out", tmp_path / "model") == 2
    assert "Run `python -m training train`" in capsys.readouterr().err
    assert command("train", *general) == 0
    assert command("train", "--split", "random", "--folds", "1", *general) == 0
    assert command("cross-validate", "--split", "random", "--folds", "one", *general) == 2
    assert command("train", "--size", "paper", *general) == 2
    assert "was begun with another configuration" in capsys.readouterr().err
    assert command("train", "--seed", "7", *general) == 2
    assert command("export", "--run", run) == 2
    assert "--out" in capsys.readouterr().err
    assert command("train", "--dataset", tmp_path / "none.json", "--run", tmp_path / "x") == 2
    assert command("train", "--dataset", dataset, "--run", tmp_path / "x", "--tasks", "depth") == 2
    assert command("cross-validate", "--run", tmp_path / "y", "--split", "random") == 2
    assert "was not begun" in capsys.readouterr().err
    assert command("train", "--dataset", dataset, "--run", ground / "tiny") == 2
    assert "is not empty" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # handlers are put back
