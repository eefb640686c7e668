"""Laws of training on a dataset: losses, windows, batches, features, and what is asked equals what is mapped."""

import dataclasses
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

torch.set_num_threads(1)  # the maps are too small for two

import tiny_dataset  # noqa: E402
from torch.nn import functional  # noqa: E402

from miso_qgis.engine.errors import InputError  # noqa: E402
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec  # noqa: E402
from miso_qgis.engine.schema import to_json  # noqa: E402
from training import features, losses  # noqa: E402
from training.asking import ask, taper, window_spec  # noqa: E402
from training.config import ModelConfig  # noqa: E402
from training.dataset import read_dataset  # noqa: E402
from training.model import Miso, scale_coordinates  # noqa: E402
from training.objectives import Objective, masked_loss, spread_info_nce  # noqa: E402
from training.recipes import PRESETS, Recipe, StageRecipe, read_recipe  # noqa: E402
from training.sampling import Labelled, Sampler  # noqa: E402
from training.scenes import open_scene  # noqa: E402
from training.sites import MISSING  # noqa: E402
from training.surveys import assign_folds, load_sites  # noqa: E402
from training.world import World  # noqa: E402

ALONE = World()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(tiny_dataset.RECIPE)
    return read_recipe(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(tiny_dataset.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def scene(dataset, recipe):
    with open_scene(dataset, recipe.size) as found:
        yield found


@pytest.fixture(scope="module")
def config(dataset, scene, recipe):
    return features.model_config(dataset, scene, recipe, dataset.tasks)


@pytest.fixture(scope="module")
def labelled(dataset, scene):
    return Labelled.of(load_sites(dataset)[0], scene, dataset.tasks)


def network(config, seed=0):
    torch.manual_seed(seed)
    return Miso(config).eval()


# Losses


def test_masked_losses_are_those_worked_by_hand_and_by_torch():
    # Two labels count: logit 0 with label 1 gives log 2, logit log 3 with label 0 gives log(1 + 3) = log 4.
    logits = torch.tensor([[[0.0], [math.log(3.0)], [50.0]]])
    labels = torch.tensor([[1, 0, MISSING]])
    assert float(masked_loss(logits, labels, ALONE)) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 5, 7, generator=generator), torch.randint(-1, 7, (3, 5), generator=generator)
    expected = functional.cross_entropy(logits.reshape(-1, 7), labels.reshape(-1), ignore_index=-1)
    assert float(masked_loss(logits, labels, ALONE)) == pytest.approx(float(expected), rel=1e-6)
    smoothed = functional.cross_entropy(logits.reshape(-1, 7), labels.reshape(-1), ignore_index=-1, label_smoothing=0.1)
    assert float(masked_loss(logits, labels, ALONE, 0.1)) == pytest.approx(float(smoothed), rel=1e-6)


def test_a_missing_label_has_no_gradient_whatever_its_logit():
    logits = torch.tensor([[[1.0], [float("inf")], [-2.0]]], requires_grad=True)
    loss = masked_loss(logits, torch.tensor([[1, MISSING, MISSING]]), ALONE)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad.flatten()[0] == pytest.approx(1 / (1 + math.exp(-1.0)) - 1)  # sigmoid minus label
    assert logits.grad.flatten()[1:].tolist() == [0.0, 0.0]
    assert float(masked_loss(logits.detach(), torch.full((1, 3), MISSING), ALONE)) == 0.0


def test_info_nce_is_that_of_two_orthogonal_places_and_of_the_other_implementation():
    # Cosine 1 on the diagonal, 0 beside it, temperature 1/2: log(e^2 + e^0) - 2 in both directions.
    eye = torch.eye(2) * 3.0
    expected = math.log(math.exp(2.0) + 1.0) - 2.0
    assert float(spread_info_nce(eye, 5 * eye, 0.5, ALONE)) == pytest.approx(expected, rel=1e-5)
    one, other = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.randn(9, 4)
    assert float(spread_info_nce(one, other, 0.1, ALONE)) == pytest.approx(float(losses.info_nce(one, other, 0.1)))


def test_a_task_without_labels_in_a_batch_learns_nothing_from_it(scene, config, recipe, labelled):
    drawn = Sampler(scene, config, recipe, 1, labelled).draw(0, range(3)).fields
    drawn["label_soil_order"] = torch.full_like(drawn["label_soil_order"], MISSING)
    both, alone = network(config), network(config)
    with_orders = Objective(both, recipe, ALONE, supervised=True, precision="float32")
    with_orders(drawn)[0].backward()
    assert all(float(value.grad.abs().max()) == 0.0 for value in both.heads["soil_order"].parameters())
    single = dataclasses.replace(config, tasks={"nsp": 1})
    alone = Miso(single)
    alone.load_state_dict(
        {name: value for name, value in both.state_dict().items() if not name.startswith("heads.soil")}
    )
    Objective(alone.train(), recipe, ALONE, supervised=True, precision="float32")(drawn)[0].backward()
    for name, value in alone.named_parameters():
        if value.grad is not None:
            assert torch.equal(value.grad, dict(both.named_parameters())[name].grad), name


def test_task_weights_scale_a_task_and_geo_can_be_left_out(scene, config, recipe, labelled):
    drawn = Sampler(scene, config, recipe, 1, labelled).draw(0, range(3)).fields
    model = network(config)
    values = {}
    for weight in (0.0, 1.0):
        weighted = dataclasses.replace(recipe, task_weights={"soil_order": weight})
        values[weight] = Objective(model, weighted, ALONE, supervised=True, precision="float32")(drawn).tolist()
    total, nsp, order = values[1.0]
    assert total == pytest.approx(nsp + order)
    assert values[0.0][0] == pytest.approx(nsp)
    contrast = dataclasses.replace(recipe.contrast, geo_weight=0.0)
    objective = Objective(
        model, dataclasses.replace(recipe, contrast=contrast), ALONE, supervised=False, precision="float32"
    )
    assert model.geo in objective.idle()
    found = objective(Sampler(scene, config, recipe, 1).draw(0, range(2)).fields)
    assert found.tolist()[0] == pytest.approx(found.tolist()[1])


def test_half_precision_stays_near_single_precision_and_trains(scene, config, recipe, labelled):
    contrast = dataclasses.replace(recipe.contrast, fit_weight=0.1)
    both = dataclasses.replace(recipe, contrast=contrast)
    drawn = Sampler(scene, config, both, 1, labelled).draw(0, range(3)).fields
    found = {}
    for precision in ("float32", "bfloat16"):
        model = network(config)
        values = Objective(model, both, ALONE, supervised=True, precision=precision)(drawn)
        values[0].backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        assert all(gradient.dtype == torch.float32 and bool(torch.isfinite(gradient).all()) for gradient in gradients)
        found[precision] = values.detach()
    assert torch.allclose(found["bfloat16"], found["float32"], rtol=0.03)
    assert not torch.equal(found["bfloat16"], found["float32"])  # it really computed in half precision


# Windows and batches


def test_windows_from_memory_and_from_rasters_are_the_same(dataset, recipe, scene):
    with open_scene(dataset, recipe.size, storage="rasters") as other:
        assert (scene.in_memory, other.in_memory) == (True, False)
        for row, column in ((-7, -9), (0, 0), (11, 38), (44, 60)):
            (one, known), (two, known_too) = scene.window(row, column), other.window(row, column)
            assert torch.equal(torch.nan_to_num(one, nan=-1), torch.nan_to_num(two, nan=-1))
            assert np.array_equal(known, known_too)


def test_a_scene_that_does_not_fit_is_read_from_its_rasters(dataset, recipe):
    with open_scene(dataset, recipe.size, memory_mb=0) as found:
        assert not found.in_memory


def test_a_window_holds_the_means_of_the_pixels_under_it(scene):
    bands = tiny_dataset.channels()
    cells, known = scene.window(3, 5)
    expected = bands[0, 6:38, 10:42].reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.allclose(cells[0].numpy(), expected, rtol=1e-5)
    wet = (bands[3, 6:38, 10:42] == 11).reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.allclose(cells[3].numpy(), wet)
    assert known.all()
    hole = scene.window(8, 44)[1]  # green is missing in rows 20-29, columns 90-109
    assert not hole[2:7, 1:11].any()
    assert hole[:2].all()


def test_places_are_unknown_in_the_hole_and_outside(scene):
    rows = np.array([25.0, 19.0, -0.5, 50.0, 101.9, 102.1])
    columns = np.array([100.0, 100.0, 50.0, 131.5, 130.9, 3.0])
    assert scene.known_at(rows, columns).tolist() == [False, True, False, False, True, False]


def test_places_and_metres_are_inverse_to_each_other_in_any_crs(scene):
    row, column = np.array([0.5, 30.25]), np.array([0.5, 77.0])
    x, y = scene.metres(row, column).T
    assert (x[0], y[0]) == (tiny_dataset.LEFT + 5, tiny_dataset.TOP - 5)
    assert np.allclose(scene.places(x, y), (row, column))
    utm = dataclasses.replace(scene, grid=dataclasses.replace(scene.grid, crs=scene.grid.crs.from_epsg(32606)))
    assert np.allclose(utm.places(*utm.metres(row, column).T), (row, column), atol=1e-6)


def test_a_batch_is_a_function_of_seed_and_step_alone(scene, config, recipe, labelled):
    sampler = Sampler(scene, config, recipe, 4, labelled)
    straight = [sampler.draw(step, range(4)).fields for step in range(3)]
    again = Sampler(scene, config, recipe, 4, labelled).draw(2, range(4)).fields  # without the steps before
    halves = [Sampler(scene, config, recipe, 4, labelled).draw(2, part).fields for part in (range(2), range(2, 4))]
    assert straight[2].keys() == again.keys()
    for name, value in straight[2].items():
        assert torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(again[name].float())), name
        if "point" not in name and "label" not in name:  # these are padded to the longest of a part
            joined = torch.cat([half[name] for half in halves])
            assert torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(joined.float())), name
    assert not torch.equal(straight[0]["point_rows_px"], again["point_rows_px"])


def test_every_site_anchors_one_window_per_pass(scene, config, recipe, labelled):
    sampler = Sampler(scene, config, recipe, 4, labelled)
    count = len(labelled)
    for start in (0, count):
        assert sorted(sampler._anchor(start + i) for i in range(count)) == list(range(count))
    assert [sampler._anchor(i) for i in range(count)] != [sampler._anchor(count + i) for i in range(count)]


def test_asked_points_lie_on_the_ground_that_their_label_describes(scene, config, recipe, labelled):
    sampler = Sampler(scene, config, recipe, 4, labelled)
    checked = 0
    for step in range(12):
        fields = sampler.draw(step, range(4)).fields
        for n in range(4):
            for p in np.flatnonzero((fields["label_nsp"][n] != MISSING).numpy()):
                row, column = float(fields["point_rows_px"][n, p]), float(fields["point_columns_px"][n, p])
                wet = float(fields["covariates"][n, 1, int(row // 2), int(column // 2)])
                if wet in (0.0, 1.0):  # a cell of one class only
                    assert int(fields["label_nsp"][n, p]) == int(wet)
                    checked += 1
    assert checked > 50


def test_locations_are_where_the_geographic_encoder_is_told(scene, config, recipe):
    fields = Sampler(scene, config, recipe, 2).draw(1, range(4)).fields
    rain = fields["covariates"][:, 0]
    for n in range(4):
        for q in range(recipe.contrast.locations):
            row, column = fields["location_rows_px"][n, q], fields["location_columns_px"][n, q]
            found = float(rain[n, int(row // 2), int(column // 2)])
            # Rain is 300 + 0.5 row + 0.3 column of the grid's pixels.
            scaled = fields["location_scaled"][n, q].double()
            x = (float(scaled[0]) + 1) / 2 * 3_700_000 - 2_199_995
            y = 2_400_005 - (float(scaled[1]) + 1) / 2 * 2_400_000
            expected = 300 + 0.5 * (tiny_dataset.TOP - y) / 10 + 0.3 * (x - tiny_dataset.LEFT) / 10
            assert found == pytest.approx(expected, abs=1.0)  # within the cell, and float32 metres


def test_dropout_hides_whole_groups_one_at_a_time(scene, config, recipe, labelled):
    window = dataclasses.replace(recipe.window, group_dropout=1.0)
    fields = Sampler(scene, config, dataclasses.replace(recipe, window=window), 4, labelled).draw(0, range(8)).fields
    seen = torch.stack([fields["keep_satellite"].amax(dim=1), fields["keep_covariates"].amax(dim=1)])
    assert seen.sum(dim=0).tolist() == [1.0] * 8
    assert 0 < seen[0].sum() < 8


def test_a_dataset_without_data_is_refused(tmp_path, recipe):
    path = tiny_dataset.write(tmp_path)
    import rasterio

    with rasterio.open(tmp_path / "bands.tif", "r+") as target:
        values = target.read()
        values[1] = np.where(np.arange(131) < 66, -32768, values[1])  # no cell with both red and green
        values[0] = np.where(np.arange(131) >= 66, -32768, values[0])
        target.write(values)
    dataset = read_dataset(path)
    with (
        open_scene(dataset, recipe.size) as scene,
        pytest.raises(InputError, match="no cell was found where every channel has a value"),
    ):
        features.model_config(dataset, scene, recipe, dataset.tasks)


def test_a_grid_of_another_pixel_size_is_refused(tmp_path, recipe):
    dataset = read_dataset(tiny_dataset.write(tmp_path, resolution_m=20.0))
    with pytest.raises(InputError, match="its pixels are 20 m"), open_scene(dataset, recipe.size):
        pass


# Features


def test_channels_are_scaled_to_about_one_and_classes_to_shares(config, scene):
    satellite, covariates = config.groups
    red = satellite.features[0]
    assert red.curve == "linear"
    # Red rises evenly from 1000 to 2010 over 102 rows: median 1505, half the 5-95 % range about 455 (random windows
    # see the middle more often than the edges).
    assert red.centre == pytest.approx(1505, abs=80)
    assert 300 < red.scale < 500
    wet = [feature for feature in covariates.features if feature.channels == ("wet",)]
    assert [(feature.kind, feature.scale) for feature in wet] == [("value", 0.5), ("mean", 0.5)]
    assert wet[0].centre == pytest.approx(0.5, abs=0.1)


def test_heavy_tails_are_bent_and_normal_ones_are_not():
    group = features.GroupConfig("g", ("a", "b"), tuple(features.FeatureConfig("value", (c,)) for c in "ab"))
    generator = np.random.default_rng(0)
    normal = generator.normal(5, 2, 20000).astype(np.float32)
    heavy = np.sign(normal - 5) * np.abs(normal - 5) ** 4
    found = features._scaled(group, [normal, heavy.astype(np.float32)], set())
    assert [feature.curve for feature in found.features] == ["linear", "asinh"]
    assert found.features[0].centre == pytest.approx(5, abs=0.1)
    assert found.features[0].scale == pytest.approx(2 * 1.645, rel=0.05)  # half of the 5-95 % range of a normal


def test_terrain_gets_its_surroundings_and_the_downslope_direction():
    names = ("elevation", "aspect_sin", "aspect_cos", "slope")
    group = GroupSpec("terrain", tuple(ChannelSpec(name, "dem", f"terrain.{name}") for name in names))
    kinds = [(feature.kind, feature.channels, feature.radius_m) for feature in features.default_features(group)]
    assert ("relative", ("elevation",), 500.0) in kinds
    assert ("gradient", ("aspect_sin", "slope"), 150.0) in kinds
    assert len(kinds) == 4 + 3 + 6


def test_an_azimuth_in_degrees_is_refused_with_what_to_do(tmp_path, recipe):
    groups = (GroupSpec("satellite", (ChannelSpec("aspect", "red", unit="degree"),)),)
    dataset = read_dataset(tiny_dataset.write(tmp_path, groups=groups))
    with open_scene(dataset, recipe.size) as scene, pytest.raises(InputError, match=r"terrain\.aspect_sin"):
        features.model_config(dataset, scene, recipe, dataset.tasks)


def test_given_scales_are_kept_where_the_recipe_says_so(dataset, scene, recipe):
    given = tuple(features.FeatureConfig("value", (c,), centre=7.0, scale=3.0) for c in ("red", "green"))
    fixed = dataclasses.replace(recipe, features={"satellite": given}, fixed_scales=("satellite",))
    found = features.model_config(dataset, scene, fixed, dataset.tasks)
    assert [group.name for group in found.groups] == ["satellite", "covariates"]
    assert found.groups[0].features == given
    assert found.groups[1].features[0].scale != 1.0
    fitted = features.model_config(dataset, scene, dataclasses.replace(fixed, fixed_scales=()), dataset.tasks)
    assert fitted.groups[0].features[0].centre == pytest.approx(1505, abs=80)


def test_features_of_an_unknown_group_are_refused(dataset, scene, recipe):
    other = dataclasses.replace(recipe, features={"radar": ()})
    with pytest.raises(InputError, match="'radar'"):
        features.model_config(dataset, scene, other, dataset.tasks)


# Recipes


def test_the_schedule_starts_low_peaks_after_the_warm_up_and_falls_to_nothing():
    stage = PRESETS["paper"].fit
    steps = 1000  # warm-up of 50
    assert stage.rate(0, steps) == 5e-7
    assert stage.rate(25, steps) == pytest.approx((5e-7 + 5e-5) / 2)
    assert stage.rate(50, steps) == 5e-5
    assert stage.rate(525, steps) == pytest.approx(2.5e-5)  # halfway down the cosine
    assert stage.rate(999, steps) < 1e-9
    assert StageRecipe(steps=7).length(1000) == 7
    assert StageRecipe(epochs=3, batch=8).length(100) == 38  # ceil(300 / 8)
    assert (PRESETS["paper"].fit.epochs, PRESETS["paper"].pretrain.epochs) == (30, 50)
    assert PRESETS["paper"].pretrain.learning_rate == 1e-4


def test_a_recipe_changes_a_preset_key_by_key(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"preset": "paper", "fit": {"steps": 9}, "task_weights": {"nsp": 2.0}}))
    found = read_recipe(path)
    assert (found.fit.steps, found.fit.epochs, found.fit.learning_rate) == (9, 0.0, 5e-5)
    assert found.size == PRESETS["paper"].size
    assert found.task_weights == {"nsp": 2.0}
    assert read_recipe(None, "small") == PRESETS["small"]
    assert isinstance(read_recipe(path, "small"), Recipe)
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "model": {}, "recipe": to_json(found)}))
    assert read_recipe(tmp_path / "config.json") == found  # a run's own, to repeat it


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("colour = 3", "colour"),
        ("[fit]\nstep = 3", "step"),
        ("[size]\npatch_px = 3", "cell_px must divide"),
        ("preset = 'huge'", "'huge'"),
        ("members = 0", "members must be"),
        ("fixed_scales = ['satellite']", "features of these must be given"),
        ("precision = 'float8'", "float8"),
        ("[fit]\nsteps = 3\nepochs = 2", "not both"),
        ("stride_px = 161", "multiples of cell_px"),
        ("[fit", "Expected"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, text, word):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        read_recipe(path)


# Asking


def test_the_weight_between_pixels_is_the_engines_at_their_centres(recipe):
    from miso_qgis.engine import windows

    spec = window_spec(recipe.size, recipe)
    assert np.allclose(taper(np.arange(spec.decode_px) + 0.5, spec), windows.taper(spec))
    assert taper(np.array([0.0, -1.0, spec.decode_px]), spec).tolist() == [0.0, 0.0, 0.0]


def test_neither_order_nor_company_changes_what_a_place_is_answered(scene, config, recipe):
    model = network(config)
    generator = np.random.default_rng(0)
    row, column = generator.uniform(0, 102, 40), generator.uniform(0, 131, 40)
    x, y = scene.metres(row, column).T
    together = ask([model], scene, x, y, recipe)
    order = generator.permutation(40)
    turned = ask([model], scene, x[order], y[order], recipe)
    alone = [ask([model], scene, x[i : i + 1], y[i : i + 1], recipe) for i in range(40)]
    for task, values in together.items():
        assert np.allclose(values[order], turned[task], atol=1e-6)
        assert np.allclose(values, np.concatenate([one[task] for one in alone]), atol=1e-6)
    assert np.allclose(together["soil_order"].sum(axis=1), 1.0, atol=1e-6)
    assert together["nsp"].shape == (40, 1)


def test_a_place_outside_the_grid_has_no_answer(scene, config, recipe):
    x, y = np.array([tiny_dataset.LEFT - 1.0]), np.array([tiny_dataset.TOP - 50])
    assert np.isnan(ask([network(config)], scene, x, y, recipe)["nsp"]).all()


def test_a_constant_network_answers_its_constant_everywhere(scene, config, recipe):
    model = network(config)
    with torch.no_grad():
        model.heads["nsp"].last.weight.zero_()
        model.heads["nsp"].last.bias.fill_(0.7)
    x, y = scene.metres(np.array([0.01, 60.0, 101.99]), np.array([0.01, 70.3, 130.99])).T
    assert np.allclose(ask([model], scene, x, y, recipe)["nsp"], 1 / (1 + math.exp(-0.7)), atol=1e-6)


# Folds


def test_folds_come_from_spatial_splits_and_from_released_files(dataset, tmp_path):
    sites = load_sites(dataset)[0]
    assert assign_folds(sites, "random", 1, dataset).folds == 5
    half = [str(name) for name in sites.id[::2]], [str(name) for name in sites.id[1::2]]
    content = {"fold_0": {"train": half[0], "test": half[1]}, "fold_1": {"train": half[1], "test": half[0]}}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    found = assign_folds(sites, str(tmp_path / "mine.json"), 1, dataset)
    assert (found.name, found.fold[:3].tolist()) == ("mine", [1, 0, 1])
    with pytest.raises(InputError, match=r"is unknown.*SH-10km"):
        assign_folds(sites, "SH-3km", 1, dataset)


def test_coordinates_are_scaled_as_the_test_above_undoes():
    scaled = scale_coordinates(torch.tensor([-2_199_995.0, 1_500_005.0]), torch.tensor([2_400_005.0, 5.0]))
    assert scaled.tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def test_a_network_for_one_group_only_learns_from_places(dataset, scene, config, recipe):
    single = ModelConfig(config.groups[:1], config.size, config.tasks)
    fields = Sampler(scene, config, recipe, 2).draw(0, range(2)).fields
    objective = Objective(network(single), recipe, ALONE, supervised=False, precision="float32")
    found = dict(zip(objective.names, objective(fields).tolist()))
    assert found["modalities"] == 0.0
    assert found["loss"] == pytest.approx(found["geo"])
