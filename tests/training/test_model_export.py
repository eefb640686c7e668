"""The exported graphs compute what the network computes, at any batch, place and with missing values."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")
onnx = pytest.importorskip("onnx", reason="onnx is not installed in this environment")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed in this environment")

torch.set_num_threads(1)  # the maps are too small for two

from miso_qgis.engine.graphs import check_graph  # noqa: E402
from training.config import FeatureConfig, GroupConfig, ModelConfig, SizeConfig  # noqa: E402
from training.export import DecoderGraph, EncoderGraph, export, export_whole, halve, map_names  # noqa: E402
from training.model import Miso  # noqa: E402

# Two stages, the first of them with shifted attention: the exporter needs seconds per block.
SIZE = SizeConfig(
    window_px=64,
    cell_px=4,
    patch_px=8,
    channels=16,
    depths=(2, 1),
    head_channels=8,
    attention_window=4,
    implicit_widths=(16, 32),
    embedding=32,
    offset_gain=0.5,
)
GROUPS = (
    GroupConfig(
        "terrain",
        ("elevation", "slope"),
        (
            FeatureConfig("value", ("elevation",), scale=100.0, curve="asinh"),
            FeatureConfig("relative", ("elevation",), 120.0, scale=50.0),
            FeatureConfig("value", ("slope",), scale=10.0),
        ),
    ),
    GroupConfig("surface", ("shrub",), (FeatureConfig("mean", ("shrub",), 80.0),)),
)
TEMPERATURE = 1.3
# Weights have 11 bits of mantissa in storage. These networks have tripled weights, which triples the effect per layer.
HALF_TOLERANCE = 0.03


def member(seed):
    torch.manual_seed(seed)
    model = Miso(ModelConfig(GROUPS, SIZE, {"nsp": 1, "orders": 3}, (("terrain", "surface"), ("terrain",)))).eval()
    with torch.no_grad():  # fresh heads answer 0.5 everywhere, which would compare nothing
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def windows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    terrain = torch.randn(n, 2, 64, 64, generator=generator) * 60
    surface = (torch.rand(n, 1, 64, 64, generator=generator) > 0.5).float()
    terrain[0, :, 5:41, 20:50] = float("nan")
    surface[-1, :, 30:, :] = float("nan")
    return {"terrain": terrain, "surface": surface}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two members and their graphs in single precision, so that 1e-4 means the factorisation, not the storage."""
    folder = tmp_path_factory.mktemp("model")
    members = [member(1), member(2)]
    return members, export(members, folder, TEMPERATURE, half=False)


def literal(members, raw, rows, columns, task):
    """Point by point, through eq. 1 as it is written."""
    n, r, q = raw["terrain"].shape[0], rows.numel(), columns.numel()
    row = rows[:, None].expand(r, q).reshape(1, -1).expand(n, -1)
    column = columns[None, :].expand(r, q).reshape(1, -1).expand(n, -1)
    with torch.no_grad():
        logit = torch.stack([model(raw, row, column)[task] for model in members]).mean(dim=0) / TEMPERATURE
    probability = torch.sigmoid(logit) if logit.shape[-1] == 1 else torch.softmax(logit, dim=-1)
    return probability.reshape(n, r, q, -1).permute(0, 3, 1, 2).numpy()


@pytest.mark.parametrize(("n", "r", "q"), [(1, 1, 1), (2, 5, 7), (3, 16, 64)])
def test_point_decode_grid_decode_and_runtime_agree(exported, n, r, q):
    members, paths = exported
    raw = windows(n, seed=n)
    generator = torch.Generator().manual_seed(r)
    rows = torch.rand(r, generator=generator) * 64
    columns = torch.rand(q, generator=generator) * 64
    encoder = onnxruntime.InferenceSession(str(paths["encoder"]), providers=["CPUExecutionProvider"])
    decoder = onnxruntime.InferenceSession(str(paths["decoder"]), providers=["CPUExecutionProvider"])
    maps = encoder.run(None, {name: window.numpy() for name, window in raw.items()})
    feeds = dict(zip(map_names(members), maps))
    found = decoder.run(None, {"rows": rows.numpy(), "columns": columns.numpy(), **feeds})
    with torch.no_grad():
        grid = DecoderGraph(members, TEMPERATURE)(rows, columns, *EncoderGraph(members)(*raw.values()))
    for i, task in enumerate(("nsp", "orders")):
        expected = literal(members, raw, rows, columns, task)
        assert expected.std() > 0.005 or expected.size <= 3, "the comparison would be empty"
        assert np.abs(grid[i].numpy() - expected).max() < 1e-4
        assert np.abs(found[i] - expected).max() < 1e-4
        assert found[i].shape == (n, 1 if task == "nsp" else 3, r, q)


def test_half_precision_storage_halves_the_file_and_keeps_the_answer(exported, tmp_path):
    members, paths = exported
    raw = windows(2, seed=9)
    rows, columns = torch.rand(9) * 64, torch.rand(4) * 64
    stored = {}
    for name, path in paths.items():
        model = onnx.load(str(path))
        halve(model.graph)
        onnx.checker.check_model(model)
        stored[name] = model.SerializeToString()
    assert len(stored["encoder"]) < 0.75 * paths["encoder"].stat().st_size
    encoder, decoder = (
        onnxruntime.InferenceSession(stored[name], providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    maps = encoder.run(None, {name: window.numpy() for name, window in raw.items()})
    feeds = dict(zip(map_names(members), maps))
    found = decoder.run(["nsp"], {"rows": rows.numpy(), "columns": columns.numpy(), **feeds})[0]
    assert np.abs(found - literal(members, raw, rows, columns, "nsp")).max() < HALF_TOLERANCE


def test_graphs_have_the_names_of_the_contract_and_pass_the_engine_policy(exported):
    members, paths = exported
    encoder, decoder = onnx.load(str(paths["encoder"])), onnx.load(str(paths["decoder"]))
    names = map_names(members)
    assert [value.name for value in encoder.graph.input] == ["terrain", "surface"]
    assert [value.name for value in encoder.graph.output] == names
    assert [value.name for value in decoder.graph.input] == ["rows", "columns", *names]
    assert [value.name for value in decoder.graph.output] == ["nsp", "orders"]
    for path in paths.values():
        assert check_graph(path.read_bytes())[""] == 18


def test_nothing_of_the_exporting_machine_is_in_the_graphs(exported):
    _, paths = exported
    for path in paths.values():
        data = path.read_bytes()
        assert b".py" not in data
        assert b"/home" not in data
        assert b"torch.nn" not in data


def test_the_geographic_encoder_is_not_exported(exported):
    members, paths = exported
    own = sum(p.numel() for name, p in members[0].named_parameters() if not name.startswith("geo."))
    stored = 0
    for path in paths.values():
        stored += sum(int(np.prod(t.dims)) for t in onnx.load(str(path)).graph.initializer if t.data_type in (1, 10))
    assert stored < 2.3 * own  # two members, baked position biases, no geographic encoder


def test_a_single_graph_gives_all_maps(exported, tmp_path):
    members, _ = exported
    path = export_whole(members, tmp_path / "whole.onnx", TEMPERATURE, half=False)
    raw = windows(2, seed=4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = torch.cat(list(raw.values()), dim=1).numpy()
    nsp, orders = session.run(None, {"image": image})
    assert nsp.shape == (2, 1, 64, 64)
    assert orders.shape == (2, 3, 64, 64)
    assert np.allclose(orders.sum(axis=1), 1.0, atol=1e-5)
    rows, columns = torch.tensor([10.5]), torch.tensor([40.5])
    expected = literal(members, raw, rows, columns, "nsp")[:, 0, 0, 0]
    assert np.abs(nsp[:, 0, 10, 40] - expected).max() < 1e-4
