"""Windows that training draws, and laws of the training loop."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

torch.set_num_threads(1)  # the maps are too small for two

from training import loop  # noqa: E402
from training.batches import Drawer, Points, Scene, cut  # noqa: E402
from training.config import (  # noqa: E402
    FeatureConfig,
    FitConfig,
    GroupConfig,
    ModelConfig,
    PretrainConfig,
    SizeConfig,
)

SIZE = SizeConfig(
    window_px=32,
    cell_px=4,
    patch_px=4,
    channels=8,
    depths=(1, 1),
    head_channels=4,
    attention_window=4,
    implicit_widths=(8, 8),
    embedding=8,
)
CONFIG = ModelConfig(
    (
        GroupConfig(
            "terrain",
            ("row", "column"),
            tuple(FeatureConfig("value", (c,), 0, "linear", 40, 40) for c in ("row", "column")),
        ),
        GroupConfig("surface", ("wet",), (FeatureConfig("value", ("wet",)),)),
    ),
    SIZE,
)


def scene(height=90, width=70):
    """Channels that hold their own pixel coordinates, a class, and a hole."""
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    terrain = np.stack([rows, columns]).astype(np.float32)
    terrain[:, 20:30, 40:] = np.nan
    wet = (columns < 35).astype(np.float32)[None]
    channels = {"terrain": torch.tensor(terrain), "surface": torch.tensor(wet)}
    return Scene(channels, np.isfinite(terrain).all(axis=0), (1000.0, 2000.0), 10.0)


def labelled(count=60, seed=0):
    generator = np.random.default_rng(seed)
    row, column = generator.uniform(0, 90, count), generator.uniform(0, 70, count)
    return Points(row, column, (column < 35).astype(np.float32))


@pytest.mark.parametrize("coarse", [False, True])
def test_points_lie_on_the_pixels_that_hold_their_coordinates_however_the_window_is_mirrored(coarse):
    place = scene().coarsened(4) if coarse else scene()
    draw = Drawer(place, 32, seed=1).draw(24, locations=5, points=40, labelled=labelled())
    step = 4 if coarse else 1
    raw = cut(place, draw.rows, draw.columns)["terrain"].numpy()
    points = labelled()
    checked = 0
    for n in range(24):
        for p in np.flatnonzero(draw.counts[n]):
            i, j = int(draw.point_rows_px[n, p] // step), int(draw.point_columns_px[n, p] // step)
            row, column = raw[n, :, i, j]
            if np.isfinite(row):
                near = (abs(points.row_px - row) <= step + 1e-3) & (abs(points.column_px - column) <= step + 1e-3)
                assert near.any()
                assert draw.label[n, p] in points.label[near]
                checked += 1
        for q in range(5):
            i, j = int(draw.location_rows_px[n, q] // step), int(draw.location_columns_px[n, q] // step)
            x, y = draw.location_m[n, q]
            assert abs((x - 1000.0) / 10.0 - raw[n, 1, i, j]) <= step + 1e-3
            assert abs((2000.0 - y) / 10.0 - raw[n, 0, i, j]) <= step + 1e-3
    assert checked > 50


def test_mirroring_moves_places_and_leaves_values():
    windows = Drawer(scene(), 32, seed=3).draw(40)
    falling = [(np.diff(windows.rows[n]) < 0).all() for n in range(40)]
    assert 5 < sum(falling) < 35
    assert not any((np.diff(window) < 0).any() for window in Drawer(scene(), 32, seed=3, flips=False).draw(40).rows)


def test_outside_the_scene_everything_is_missing():
    rows = np.arange(-8, 24)[None]
    raw = cut(scene(), rows, np.arange(60, 92)[None])
    assert torch.isnan(raw["terrain"][0, :, :8]).all()
    assert torch.isnan(raw["surface"][0, :, :, 10:]).all()
    assert torch.isfinite(raw["surface"][0, :, 8:, :10]).all()


def test_held_out_points_are_never_asked():
    everything = labelled(400)
    kept = everything.column_px < 30
    some = Points(everything.row_px[kept], everything.column_px[kept], everything.label[kept])
    draw = Drawer(scene(), 32, seed=5).draw(30, points=200, labelled=some)
    assert draw.counts.sum() == sum(
        int(
            (
                (some.row_px >= rows.min())
                & (some.row_px < rows.max() + 1)
                & (some.column_px >= columns.min())
                & (some.column_px < columns.max() + 1)
            ).sum()
        )
        for rows, columns in zip(draw.rows, draw.columns)
    )


FIT = FitConfig(steps=12, batch=3, points=30, learning_rate=3e-3, warmup=0.2, average_decay=0.8)


def job(seed=7, start_seed=3):
    return loop.Job(seed, labelled(), loop.initial_parameters(CONFIG, start_seed))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    place = scene().coarsened(4)
    one, again, other = (loop.fit(CONFIG, FIT, PretrainConfig(), place, [job(seed)])[0] for seed in (7, 7, 8))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_jobs_side_by_side_learn_what_they_learn_alone():
    place = scene().coarsened(4)
    settings = FitConfig(steps=3, batch=2, points=20, group_dropout=0.3, feature_dropout=0.2, contrastive_weight=0.1)
    jobs = [job(7, 3), job(8, 4)]
    together = loop.fit(CONFIG, settings, PretrainConfig(locations=4), place, jobs)
    for i in range(2):
        alone = loop.fit(CONFIG, settings, PretrainConfig(locations=4), place, [jobs[i]])[0]
        apart = torch.cat([(together[i][name] - alone[name]).abs().flatten() for name in alone])
        # AdamW's first steps have the length of the rate whatever the gradient, so where it is zero rounding decides.
        assert float(apart.quantile(0.9)) < 1e-5


def test_a_negated_channel_cannot_tell_its_signs_apart():
    rows, columns = np.meshgrid(np.arange(90) - 45.0, np.arange(70) - 35.0, indexing="ij")
    terrain = np.stack([rows, columns]).astype(np.float32)
    surface = np.zeros((1, 90, 70), np.float32)
    place = Scene({"terrain": torch.tensor(terrain), "surface": torch.tensor(surface)}, rows < 99, (0.0, 0.0), 10.0)
    flat = ModelConfig(
        (
            GroupConfig("terrain", ("row", "column"), (FeatureConfig("value", ("column",), scale=20.0),)),
            CONFIG.groups[1],
        ),
        SIZE,
    )
    generator = np.random.default_rng(0)
    row, column = generator.uniform(0, 90, 300), generator.uniform(0, 70, 300)
    points = Points(row, column, (column < 35).astype(np.float32))  # the sign of the second channel
    found = {}
    for negated in ((), ("column",)):
        settings = FitConfig(
            steps=60, batch=4, points=40, learning_rate=5e-3, average_decay=0.9, negated=negated, flips=False
        )
        start = loop.initial_parameters(flat, 0)
        parameters = loop.fit(flat, settings, PretrainConfig(), place.coarsened(4), [loop.Job(1, points, start)])[0]
        chance = loop.predict([loop.with_parameters(flat, parameters)], place.coarsened(4), row, column, (16, 24))
        found[negated] = ((chance > 0.5) == (points.label > 0.5)).mean()
    assert found[()] > 0.9
    assert found[("column",)] < 0.75


def test_a_class_that_the_surface_shows_is_learned():
    settings = FitConfig(steps=80, batch=4, points=40, learning_rate=5e-3, average_decay=0.9)
    place = scene().coarsened(4)
    model = loop.with_parameters(CONFIG, loop.fit(CONFIG, settings, PretrainConfig(), place, [job()])[0])
    rows, columns = np.array([10.0, 50.0, 80.0, 45.0]), np.array([10.0, 12.0, 60.0, 58.0])
    chance = loop.predict([model], place, rows, columns, (16, 24))
    assert (chance > 0.5).tolist() == [True, True, False, False]


def test_contrastive_loss_falls():
    losses = []
    settings = PretrainConfig(steps=60, batch=4, locations=8, learning_rate=3e-3)
    loop.pretrain(CONFIG, settings, FIT, scene().coarsened(4), [1], lambda step, steps, value: losses.append(value))
    assert losses[-1] < losses[0] - 0.1


def test_a_constant_network_predicts_its_constant_everywhere():
    place = scene()
    model = loop.with_parameters(CONFIG, loop.initial_parameters(CONFIG, 0))
    with torch.no_grad():
        model.heads["nsp"].last.weight.zero_()
        model.heads["nsp"].last.bias.fill_(0.7)
    generator = np.random.default_rng(0)
    rows, columns = generator.uniform(0, 90, 200), generator.uniform(0, 70, 200)
    chance = loop.predict([model], place, rows, columns, (16, 24))
    assert np.allclose(chance, 1 / (1 + np.exp(-0.7)), atol=1e-6)
