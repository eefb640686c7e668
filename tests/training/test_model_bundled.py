"""The bundled model's configuration on the real watershed: what it sees is finite, scaled and in place."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

torch.set_num_threads(1)  # the maps are too small for two

import numpy as np  # noqa: E402

from miso_qgis.engine.errors import MisoError  # noqa: E402
from training import cpcrw  # noqa: E402
from training.batches import Drawer, cut  # noqa: E402
from training.bundled import Workshop, labelled  # noqa: E402
from training.conditioning import Conditioning  # noqa: E402

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    try:
        if cpcrw.find(labels=True).observations is None:
            pytest.skip("the watershed's files are not beside the checkout")
    except MisoError as error:
        pytest.skip(f"the watershed's files are not at hand: {error}")
    return Workshop.of(tmp_path_factory.mktemp("run"))


def test_features_of_the_watershed_are_finite_and_of_order_one(workshop):
    draw = Drawer(workshop.place, workshop.config.size.window_px, 1, flips=False).draw(12)
    raw = cut(workshop.place, draw.rows, draw.columns)
    for group in workshop.config.groups:
        features = Conditioning(group, workshop.config.size)(raw[group.name])
        assert torch.isfinite(features).all()
        spread = features.std(dim=(0, 2, 3))
        assert (spread > 0.05).all()
        assert (spread < 2.0).all()


def test_points_lie_on_cells_with_their_elevation(workshop):
    observations = cpcrw.load_observations(cpcrw.DEVELOPMENT_SEED)
    points = labelled(observations, workshop.stack)
    assert np.array_equal(np.floor(points.row_px).astype(int), observations.row)
    assert np.array_equal(np.floor(points.column_px).astype(int), observations.col)
    assert workshop.stack.valid[observations.row, observations.col].mean() > 0.99


def test_every_group_of_the_manifest_is_a_modality_in_its_order(workshop):
    for group, spec in zip(workshop.config.groups, cpcrw.groups()):
        assert group.name == spec.name
        assert group.channels == tuple(channel.name for channel in spec.channels)


def test_untrained_networks_answer_probabilities_everywhere(workshop):
    from training import loop

    model = loop.with_parameters(workshop.config, loop.initial_parameters(workshop.config, 0))
    cells = cpcrw.load_open_cells()
    found = workshop.ask([model], cells.subset(np.arange(0, len(cells), 997)))
    assert np.isfinite(found).all()
    assert ((found > 0) & (found < 1)).all()
