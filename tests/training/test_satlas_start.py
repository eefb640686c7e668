"""A run starts one encoder from SatlasNet's weights: from the file it names, with the scales they know, or not at all.

The checkpoint has SatlasNet's names at a small width; that the paper's size is the real file's is in test_satlas.py.
"""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

torch.set_num_threads(1)

import rasterio  # noqa: E402
import released_reference as reference  # noqa: E402
import tiny_dataset  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402
from released_checkpoints import Sizes, random_state, swin_v2_shapes  # noqa: E402

from miso_qgis.engine.errors import InputError  # noqa: E402
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec, read_manifest  # noqa: E402
from miso_qgis.engine.messages import RasterSource  # noqa: E402
from training import cli, outoffold, runs, satlas, satlas_start  # noqa: E402
from training.crossvalidation import Means, begun  # noqa: E402
from training.dataset import read_dataset  # noqa: E402
from training.loop import initial_parameters, with_parameters  # noqa: E402
from training.recipes import PRESETS, read_recipe  # noqa: E402
from training.runs import DataFile, RunData, StartWeights  # noqa: E402
from training.trainer import Execution, Stop  # noqa: E402
from training.world import World  # noqa: E402

NAMES = Sizes(channels=8, depths=(1, 2), heads=(2, 4), window=4, hidden=12)
RECIPE = """
stride_px = 16
decode_px = 24
[size]
window_px = 32
cell_px = 1
patch_px = 4
channels = 8
depths = [1, 2]
head_channels = 4
attention_window = 4
position_hidden = 12
implicit_widths = [8, 8]
embedding = 8
frequencies = 4
[pretrain]
steps = 2
batch = 2
[fit]
steps = 2
batch = 2
[contrast]
locations = 4
[window]
points = 10
"""
ENCODER = "modalities.satellite.encoder."
# The stretch of the true-colour product, and 8160, written out again: lowest and highest value of each band.
LOW = [78, 158, 167, 0, 0, 0, 0, 0, 0]
HIGH = [3318, 3411, 3335, 8160, 8160, 8160, 8160, 8160, 8160]


def write_ground(folder, names=satlas.CHANNELS, factor=1.0):
    """The tiny ground with nine bands of its own; ``names`` are the channels of the group, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "width": tiny_dataset.WIDTH, "height": tiny_dataset.HEIGHT, "count": 9}
    profile.update(crs="EPSG:3338", transform=from_origin(tiny_dataset.LEFT, tiny_dataset.TOP, 10, 10))
    values = np.random.default_rng(4).uniform(100, 6000, (9, tiny_dataset.HEIGHT, tiny_dataset.WIDTH)) * factor
    with rasterio.open(folder / "nine.tif", "w", dtype="float32", **profile) as target:
        target.write(values.astype(np.float32))
    inputs = {name: InputSpec("continuous", name, range=(0.0, 1e5)) for name in (*names, "rain")}
    sources = {name: RasterSource("nine.tif", band + 1) for band, name in enumerate(names)}
    covariates = GroupSpec("covariates", (ChannelSpec("rain", "rain", unit="mm"),))
    return tiny_dataset.write(
        folder,
        sites=20,
        inputs=inputs,
        sources={**sources, "rain": RasterSource("bands.tif", 3)},
        groups=(GroupSpec("satellite", tuple(ChannelSpec(name, name) for name in names)), covariates),
    )


@pytest.fixture(scope="module")
def state():
    found = random_state(swin_v2_shapes(NAMES, satlas.PREFIX), seed=4)
    return {**found, "intermediates.0.fpn.layer_blocks.0.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def ground(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    write_ground(folder / "data")
    (folder / "recipe.toml").write_text(RECIPE)
    torch.save(state, folder / "satlas.pth")
    return folder


def command(*words):
    return cli.main([str(word) for word in words])


def beginning(ground, run, *more, step="pretrain", dataset=None):
    general = ("--dataset", dataset or ground / "data", "--recipe", ground / "recipe.toml", "--no-tensorboard")
    return command(step, "--run", run, *general, *more)


@pytest.fixture(scope="module")
def pretrained(ground, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert beginning(ground, run, "--satlas", ground / "satlas.pth") == 0
    return run


def opened(run, recipe=None, dataset=None, asked=satlas_start.NOTHING):
    means = Means(World(), Stop(), Execution(tensorboard=False))
    return begun(run, dataset, recipe, (), None, means, lambda text: None, asked)


# The start


def test_stages_start_from_the_file_in_one_encoder_and_from_the_seed_elsewhere(ground, state, tmp_path):
    recipe = read_recipe(ground / "recipe.toml")
    # Steps that move nothing: what comes out of pretraining is what went in.
    still = dataclasses.replace(recipe.pretrain, learning_rate=1e-12, start_rate=0.0)
    recipe = dataclasses.replace(recipe, pretrain=still, members=2)
    asked = satlas_start.Asked(ground / "satlas.pth")
    with opened(tmp_path / "run", recipe, ground / "data", asked) as shop:
        found = shop.pretrained()
        config, seeds = shop.run.config.model, shop.run.member_seeds()
    assert len(found) == 2
    for member, seed in zip(found, seeds):
        fresh = initial_parameters(config, seed)
        for name, value in fresh.items():
            assert name.startswith(ENCODER) or torch.allclose(member[name], value, atol=1e-8), name
        kernel = state[f"{satlas.PREFIX}features.0.0.weight"]
        assert torch.allclose(member[f"{ENCODER}embed.weight"], kernel, atol=1e-8)
        assert not torch.allclose(fresh[f"{ENCODER}embed.weight"], kernel, atol=0.01)


def test_raw_reflectance_gives_the_maps_of_a_literal_second_network(ground, state, tmp_path):
    recipe = read_recipe(ground / "recipe.toml")
    recipe = dataclasses.replace(recipe, pretrain=dataclasses.replace(recipe.pretrain, steps=0))
    with opened(tmp_path / "run", recipe, ground / "data", satlas_start.Asked(ground / "satlas.pth")) as shop:
        model = with_parameters(shop.run.config.model, shop.pretrained()[0]).double()
    with rasterio.open(ground / "data" / "nine.tif") as source:
        raw = torch.from_numpy(source.read()[:, :32, :32]).double()[None]
    low, high = (torch.tensor(values).double().reshape(1, 9, 1, 1) for values in (LOW, HIGH))
    scaled = ((raw - low) / (high - low)).clamp(-1, 1)
    with torch.no_grad():
        found = model.modalities["satellite"].maps(raw)
        expected = reference.swin_v2({k: v.double() for k, v in state.items()}, satlas.PREFIX, scaled, NAMES)
    for one, other in zip(found, expected):
        assert other.std() > 0.1
        assert (one - other).abs().max() < 1e-5


# What a run says of it


def test_run_predictions_manifest_and_card_name_the_file(ground, pretrained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    digest = hashlib.sha256((ground / "satlas.pth").read_bytes()).hexdigest()
    data = json.loads((run / "data.json").read_text())
    assert data["satlas"]["group"] == "satellite"
    assert data["satlas"]["file"]["sha256"] == digest
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert recipe["fixed_scales"] == ["satellite"]
    assert [one["centre"] for one in recipe["features"]["satellite"]] == LOW
    assert command("train", "--run", run, "--no-tensorboard") == 0  # the run knows its file
    assert command("cross-validate", "--run", run, "--split", "random", "--no-tensorboard") == 0
    for prediction in outoffold.load_run(run):
        assert prediction.facts["satlas"] == {"group": "satellite", "file": "satlas.pth", "sha256": digest}
    assert command("export", "--run", run, "--out", tmp_path / "model") == 0
    text = read_manifest(tmp_path / "model").trained["started_from"]
    assert "(satlas.pth)" in text
    assert "arXiv:2211.15660" in text
    assert text in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert digest[:16] not in (tmp_path / "model" / "manifest.json").read_text()


def test_the_digest_tells_files_and_groups_apart_but_not_places():
    file, other = DataFile("aa", 1, 2), DataFile("bb", 1, 2)
    plain = RunData("dataset.json", {"sites.csv": file})
    # What it was before there were such starts, so that older runs go on.
    assert plain.digest == hashlib.sha256(b'[["sites.csv", "aa"]]').hexdigest()
    digests = {
        dataclasses.replace(plain, satlas=weights).digest
        for weights in (
            None,
            StartWeights("a.pth", "satellite", file),
            StartWeights("elsewhere/a.pth", "satellite", file),
            StartWeights("a.pth", "winter", file),
            StartWeights("a.pth", "satellite", other),
        )
    }
    assert len(digests) == 4


# Going on


def test_a_run_goes_on_with_the_same_file_wherever_it_lies(ground, pretrained, state, tmp_path, capsys):
    run, first = tmp_path / "run", tmp_path / "first.pth"
    shutil.copy(ground / "satlas.pth", first)
    shutil.copytree(pretrained, run)
    data = json.loads((run / "data.json").read_text())
    data["satlas"]["path"] = str(first)
    (run / "data.json").write_text(json.dumps(data))
    assert beginning(ground, run, "--satlas", first) == 0  # the same command again
    first.rename(tmp_path / "second.pth")
    assert command("pretrain", "--run", run) == 2
    assert "there is no such file" in (text := capsys.readouterr().err)
    assert "--satlas FILE" in text
    assert command("pretrain", "--run", run, "--satlas", tmp_path / "second.pth") == 0
    torch.save({name: value * 1.01 for name, value in state.items()}, first)
    assert command("pretrain", "--run", run) == 2
    text = capsys.readouterr().err
    assert "it is another file" in text
    assert hashlib.sha256(first.read_bytes()).hexdigest() in text
    assert command("pretrain", "--run", run, "--satlas", tmp_path / "second.pth", "--satlas-group", "covariates") == 2
    assert "satellite starts from SatlasNet's weights, not covariates" in capsys.readouterr().err


def test_a_run_without_such_a_start_does_not_get_one_later(ground, tmp_path, capsys):
    run = tmp_path / "run"
    assert beginning(ground, run) == 0
    assert runs.open_run(run).data.satlas is None
    assert command("train", "--run", run, "--satlas", ground / "satlas.pth") == 2
    assert "was begun without SatlasNet's weights" in capsys.readouterr().err


def test_a_run_is_repeated_from_its_own_recipe_and_the_file(ground, pretrained, tmp_path):
    again = tmp_path / "again"
    more = ("--recipe", pretrained / "config.json", "--satlas", ground / "satlas.pth")
    assert beginning(ground, again, *more) == 0
    first, second = (
        torch.load(next((run / "checkpoints" / "pretrain" / "0").glob("final-*.pt")), weights_only=True)["parameters"]
        for run in (pretrained, again)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


# Bad input


def refused(ground, tmp_path, capsys, *more, dataset=None):
    """The message of a refusal; no run folder is left."""
    capsys.readouterr()
    assert beginning(ground, tmp_path / "run", *more, dataset=dataset) == 2
    assert not (tmp_path / "run").exists()
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_files_that_cannot_be_used_are_refused(ground, state, tmp_path, capsys):
    text = refused(ground, tmp_path, capsys, "--satlas", tmp_path / "none.pth")
    assert f'Checkpoint "{tmp_path / "none.pth"}": there is no such file' in text
    cut = tmp_path / "cut.pth"
    cut.write_bytes((ground / "satlas.pth").read_bytes()[:-3000])
    assert "it is cut off, damaged, or no checkpoint" in refused(ground, tmp_path, capsys, "--satlas", cut)
    lacking = f"{satlas.PREFIX}features.2.norm.bias"
    torch.save({name: value for name, value in state.items() if name != lacking}, tmp_path / "lacking.pth")
    assert f"it lacks {lacking}" in refused(ground, tmp_path, capsys, "--satlas", tmp_path / "lacking.pth")
    torch.save({**state, "more": torch.ones(2)}, tmp_path / "more.pth")
    assert "it holds the unexpected more" in refused(ground, tmp_path, capsys, "--satlas", tmp_path / "more.pth")
    torch.save({"network": state}, tmp_path / "nested.pth")
    assert "beside tensors it holds network" in refused(ground, tmp_path, capsys, "--satlas", tmp_path / "nested.pth")


def test_another_size_is_refused_field_by_field(ground, tmp_path, capsys):
    (tmp_path / "wide.toml").write_text(RECIPE.replace("depths = [1, 2]", "depths = [1, 1]").replace("s = 8", "s = 12"))
    more = ("--recipe", tmp_path / "wide.toml", "--satlas", ground / "satlas.pth")
    text = refused(ground, tmp_path, capsys, *more)
    assert "channels is 12, not 8; depths is 1-1, not 1-2" in text
    assert "Set these fields under [size] in the recipe" in text


def test_the_preset_small_is_sent_to_the_preset_paper():
    # Only sizes are read: tensors without storage do for the real file's.
    from released_checkpoints import FULL

    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in swin_v2_shapes(FULL, satlas.PREFIX).items()}
    assert satlas_start._size_problems(PRESETS["paper"].size, state, "it", "satellite") == []
    (problem,) = satlas_start._size_problems(PRESETS["small"].size, state, "it", "satellite")
    assert "cell_px is 2, not 1; patch_px is 8, not 4; channels is 36, not 128" in problem.found
    assert problem.remedy == "Add --size paper."


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("blue", "green", "red", *satlas.CHANNELS[3:]), 'channel 1 is "blue" in place of red; channel 3 is "red"'),
        (satlas.CHANNELS[:8], "it has 8 channels (red, green,"),
        ((*satlas.CHANNELS, "swir_3"), "it has 10 channels"),
        ((*satlas.CHANNELS[:8], "ndvi"), 'channel 9 is "ndvi" in place of swir_2'),
    ],
    ids=["order", "too few", "too many", "an index"],
)
def test_other_channels_are_refused(ground, tmp_path, capsys, names, words):
    dataset = write_ground(tmp_path / "data", names[:9])
    if len(names) > 9:
        described = json.loads(dataset.read_text())
        described["groups"][0]["channels"].append({"name": names[9], "from": "red"})
        dataset.write_text(json.dumps(described))
    text = refused(ground, tmp_path, capsys, "--satlas", ground / "satlas.pth", dataset=dataset)
    assert words in text
    assert "in this order: red (B04), green (B03), blue (B02), red_edge_1 (B05)" in text


def test_a_class_is_no_band(ground, tmp_path):
    dataset = read_dataset(ground / "data")
    channels = list(dataset.groups[0].channels)
    channels[8] = dataclasses.replace(channels[8], by="one_hot", value=3)
    changed = dataclasses.replace(dataset, groups=(GroupSpec("satellite", tuple(channels)), dataset.groups[1]))
    (problem,) = satlas_start._channel_problems(changed, "satellite")
    assert 'channel 9, "swir_2", is taken by one_hot, not by value' in problem.found


def test_bands_may_go_by_their_numbers(ground, tmp_path):
    dataset = write_ground(tmp_path / "data", ("B4", "B03", "b2", "B05", "B06", "B07", "B08", "B11", "swir2"))
    assert satlas_start._channel_problems(read_dataset(dataset), "satellite") == []


def test_channels_and_sizes_are_one_error_and_other_groups_are_named(ground, tmp_path, capsys):
    text = refused(
        ground, tmp_path, capsys, "--satlas", ground / "satlas.pth", "--satlas-group", "winter", "--recipe", "/dev/null"
    )
    assert "Its groups are satellite, covariates" in text
    assert "Size of the network: cell_px is 2, not 1" in text
    text = refused(ground, tmp_path, capsys, "--satlas-group", "satellite")
    assert "no file is given" in text


def test_without_a_dataset_the_bundled_model_is_not_trained_instead(ground, tmp_path, capsys):
    assert command("pretrain", "--run", tmp_path / "run", "--satlas", ground / "satlas.pth") == 2
    assert "Add --dataset" in capsys.readouterr().err


def test_reflectance_as_a_fraction_is_refused(ground, tmp_path, capsys):
    dataset = write_ground(tmp_path / "data", factor=1e-4)
    text = refused(ground, tmp_path, capsys, "--satlas", ground / "satlas.pth", dataset=dataset)
    assert 'every feature is flat: "red" goes from 0.0' in text
    assert "reflectance times 10,000" in text


def test_features_of_the_recipes_own_are_refused(ground):
    recipe, dataset = read_recipe(ground / "recipe.toml"), read_dataset(ground / "data")
    own = tuple(dataclasses.replace(one, limit=4.0) for one in satlas.features())
    with pytest.raises(InputError, match='features of its own for the group "satellite"'):
        satlas_start.with_features(dataclasses.replace(recipe, features={"satellite": own}), dataset, "satellite")
