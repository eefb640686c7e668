"""A released checkpoint becomes a model folder, and the engine's map is what the network answers at the pixels."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")
onnx = pytest.importorskip("onnx", reason="onnx is not installed in this environment")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed in this environment")

from released_checkpoints import Sizes, released_state  # noqa: E402
from released_scene import write_rasters  # noqa: E402

from miso_qgis.engine.covariates import ChannelStack  # noqa: E402
from miso_qgis.engine.grid import Grid  # noqa: E402
from miso_qgis.engine.manifest import read_manifest  # noqa: E402
from miso_qgis.engine.messages import PredictJob, RasterSource  # noqa: E402
from miso_qgis.engine.predict import predict  # noqa: E402
from miso_qgis.engine.progress import Silent  # noqa: E402
from miso_qgis.engine.session import read_model_files  # noqa: E402
from training import cli  # noqa: E402
from training.export import DecoderGraph, EncoderGraph, halve, map_names  # noqa: E402
from training.released_import import ImportSettings, import_checkpoint, probe  # noqa: E402
from training.released_load import load_released  # noqa: E402
from training.released_state import read_state  # noqa: E402

torch.set_num_threads(1)

# As little as shows everything: shifted attention and a merging for one task, a single block for the other.
SIZES = {
    "soil_order": Sizes(outputs=7),
    "nsp": Sizes(depths=(1,), heads=(2,), widths=((8, 16),), embedding=12),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(SIZES))
def imported(request, tmp_path_factory):
    """Task, network and folder, made through the command line."""
    task = request.param
    folder = tmp_path_factory.mktemp(task)
    checkpoint, out = folder / "best_model.pth", folder / "models" / f"released-{task}"
    torch.save({"model": released_state(SIZES[task], seed=7), "epoch": 40}, checkpoint)
    assert cli.main(["import-released", str(checkpoint), "--task", task, "--out", str(out)]) == 0
    return task, load_released(read_state(checkpoint), "it", task), out


def literal(model, task, raw, rows, columns):
    """Probabilities (N, K, R, Q), point by point."""
    n, r, q = raw["satellite"].shape[0], rows.numel(), columns.numel()
    row = rows[:, None].expand(r, q).reshape(1, -1).expand(n, -1)
    column = columns[None, :].expand(r, q).reshape(1, -1).expand(n, -1)
    with torch.no_grad():
        logits = model(raw, row, column)[task]
    probability = torch.sigmoid(logits) if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)
    return probability.reshape(n, r, q, -1).permute(0, 3, 1, 2).numpy()


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("n", "r", "q"), [(1, 1, 1), (2, 6, 11)])
def test_points_grid_and_runtime_agree(imported, n, r, q):
    task, model, folder = imported
    generator = torch.Generator().manual_seed(n)
    raw = probe(generator, n)
    rows, columns = torch.rand(r, generator=generator) * 250, torch.rand(q, generator=generator) * 250
    expected = literal(model, task, raw, rows, columns)
    assert r == 1 or expected.std() > 0.03, "the comparison would be empty"
    with torch.no_grad():
        parts = EncoderGraph([model])(*raw.values())
        (grid,) = DecoderGraph([model], 1.0)(rows, columns, *parts)
    maps = session(folder / "encoder.onnx").run(None, {name: value.numpy() for name, value in raw.items()})
    for found, part in zip(maps, parts):
        assert np.abs(found - part.numpy()).max() < 10 * TOLERANCE  # values of tens: offsets reach 128
    feeds = {"rows": rows.numpy(), "columns": columns.numpy(), **dict(zip(map_names([model]), maps))}
    (found,) = session(folder / "decoder.onnx").run([task], feeds)
    assert np.abs(grid.numpy() - expected).max() < TOLERANCE
    assert np.abs(found - expected).max() < TOLERANCE


def test_the_engines_map_is_what_the_network_answers_at_the_pixels(imported, tmp_path):
    task, model, folder = imported
    rasters = {name: RasterSource(str(path)) for name, path in write_rasters(tmp_path / "in", 37, 51).items()}
    job = PredictJob(str(folder), rasters, output_dir=str(tmp_path / "out"), models=("miso",), threads=1)
    result = predict(job, Silent())
    with rasterio.open(result.outputs[f"{task}_probability_miso"]) as file:
        found, transform, described = file.read(), file.transform, file.descriptions
    manifest = read_manifest(folder)
    assert len(found) == len(manifest.tasks[task].classes)
    if task == "soil_order":
        assert "Andisols" in described[0]
        assert "Spodosols" in described[6]
    # One window covers the area: its origin is the margin before the first pixel.
    margin = (manifest.window.size_px - manifest.window.decode_px) // 2
    grid = Grid(rasterio.CRS.from_epsg(3338), transform, *found.shape[1:])
    (tmp_path / "scratch").mkdir()
    settings = (manifest.inputs, manifest.channels, manifest.terrain, rasters, grid, tmp_path / "scratch", Silent())
    with ChannelStack(*settings) as stack:
        window = torch.from_numpy(stack.read(-margin, -margin, 250, 250))[None]
    raw = dict(zip(("satellite", "covariates"), torch.split(window, [9, 11], dim=1)))
    rows, columns = torch.arange(0, 37, 4.0) + margin + 0.5, torch.arange(1, 51, 7.0) + margin + 0.5
    expected = literal(model, task, raw, rows, columns)[0]
    some = found[:, 0:37:4, 1:51:7]
    valid = some[0] != -9999.0
    assert valid.sum() > 60
    assert expected[:, valid].std(axis=1).max() > 0.003
    assert np.abs(some - expected)[:, valid].max() < TOLERANCE
    # The hole of the red band, and nothing else, is nodata; bands stop where their pixels do.
    np.testing.assert_array_equal(found[0, -3:, -5:], -9999.0)
    assert (found[0] != -9999.0).sum() == result.summary["pixels"]["valid"] >= 37 * 51 - 15 - 37 - 51


def test_the_folder_says_where_it_came_from_and_what_is_not_known(imported):
    task, model, folder = imported
    files = read_model_files(folder, ("miso",))
    assert sorted(path.name for path in folder.iterdir()) == [
        "MODEL_CARD.md",
        "SHA256SUMS",
        "decoder.onnx",
        "encoder.onnx",
        "manifest.json",
    ]
    manifest = files.manifest
    assert manifest.name == folder.name
    assert [len(group.channels) for group in manifest.groups] == [9, 11]
    assert manifest.window.size_px == 250
    assert not manifest.simulated
    assert manifest.trained["parameters"] == sum(p.numel() for p in model.parameters())
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for words in ("best_model.pth", "not known", "SHA-256", "equation 1", "arXiv:2506.17302", "single precision"):
        assert words in card
    assert ("alphabetical" in card) == (task == "soil_order")
    assert "position index is standardised" in " ".join(manifest.limits)


def test_halving_keeps_the_parts_of_offsets_that_nearly_cancel(imported):
    _, _, folder = imported
    halved, kept = set(), set()
    for name in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.load(str(folder / name)).graph
        halve(graph)
        for tensor in graph.initializer:
            (halved if tensor.data_type == onnx.TensorProto.FLOAT16 else kept).add(tensor.name)
    assert halved
    assert not [name for name in halved if "row_part" in name or "column_part" in name]
    # Per stage of each branch: two in the encoder (equal ones of the branches are stored once or twice), two in the
    # decoder.
    assert len([name for name in kept if name.endswith((".row_part", ".column_part"))]) >= 4


# What stops an import


def attempt(tmp_path, capsys, state, *options, task="nsp"):
    checkpoint, out = tmp_path / "best_model.pth", tmp_path / "models" / "new"
    if isinstance(state, bytes):
        checkpoint.write_bytes(state)
    else:
        torch.save(state, checkpoint)
    status = cli.main(["import-released", str(checkpoint), "--task", task, "--out", str(out), *options])
    assert not out.exists()
    assert not (out.parent.exists() and list(out.parent.iterdir()))
    return status, capsys.readouterr().err


def test_a_checkpoint_of_the_other_task_is_refused_with_the_right_option(tmp_path, capsys):
    status, said = attempt(tmp_path, capsys, released_state(SIZES["soil_order"]))
    assert status == 2
    assert "it has 7 outputs. Task nsp needs 1. Import it with --task soil_order." in said
    status, said = attempt(tmp_path, capsys, released_state(replace(SIZES["nsp"], outputs=3)), task="soil_order")
    assert status == 2
    assert "it has 3 outputs. Task soil_order needs 7." in said


def test_a_truncated_checkpoint_leaves_nothing(tmp_path, capsys):
    torch.save(released_state(SIZES["nsp"]), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    status, said = attempt(tmp_path, capsys, data[:-2000])
    assert status == 2
    assert "cut off, damaged" in said


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    torch.save(released_state(SIZES["nsp"]), tmp_path / "best_model.pth")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    arguments = ["import-released", str(tmp_path / "best_model.pth"), "--task", "nsp", "--out", str(tmp_path / "mine")]
    assert cli.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_failure_while_exporting_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = tmp_path / "best_model.pth"
    torch.save(released_state(SIZES["nsp"]), checkpoint)

    def full_disk(members, folder, **options):
        (Path(folder) / "encoder.onnx").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.released_import.export", full_disk)
    with pytest.raises(OSError, match="No space"):
        import_checkpoint(checkpoint, tmp_path / "models" / "new", ImportSettings("nsp"))
    assert list((tmp_path / "models").iterdir()) == []


def test_a_manifest_holds_no_digest(imported):
    _, _, folder = imported
    text = json.dumps(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        assert line.split()[0] not in text
