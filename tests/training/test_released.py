"""The released network and its files: what it answers, what it takes for a checkpoint, what it refuses and how."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

import released_reference as reference  # noqa: E402
from released_checkpoints import (  # noqa: E402
    Sizes,
    one_of_each_kind,
    random_state,
    released_shapes,
    released_state,
    swin_v2_shapes,
)

from miso_qgis.engine.errors import InputError  # noqa: E402
from training.export import DecoderGraph, EncoderGraph  # noqa: E402
from training.implicit import released_shares, released_tokens  # noqa: E402
from training.released_import import probe  # noqa: E402
from training.released_inputs import BANDS, VARIABLES, Scaling, aspect_degrees  # noqa: E402
from training.released_load import load_released  # noqa: E402
from training.released_state import read_state  # noqa: E402

torch.set_num_threads(1)

SIZES = Sizes()
DEEP = Sizes(
    channels=12,
    depths=(1, 2, 1, 2),
    heads=(1, 2, 4, 8),
    embedding=20,
    widths=((4, 8), (8, 8), (8, 16), (16, 20)),
    outputs=7,
    expansion=2,
)


def inputs(count=2, queries=40, seed=5):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 19, 256, 256, generator=generator)
    query = torch.rand(count, queries, 2, generator=generator) * 2 - 1
    query[:, 0] = torch.tensor([0.996, -0.996])  # the outermost pixel centres
    geo = torch.rand(count, queries, 2, generator=generator) * 2 - 1
    return image, query, geo


@pytest.mark.parametrize("sizes", [SIZES, DEEP], ids=["two stages", "four stages, seven outputs"])
def test_every_part_answers_what_the_literal_second_implementation_answers(sizes):
    state = released_state(sizes, seed=2)
    image, query, geo = inputs()
    model = load_released(state, "it", "task")
    with torch.no_grad():
        expected = reference.answers(state, image, query, geo, sizes)
        maps = model.image_maps(image)
        answer = model.answer(maps, query[..., 1], query[..., 0])
        place, own = model.locate(geo)
    found = {"sat_emb": answer.satellite, "cov_emb": answer.covariates, "visual_emb": answer.visual}
    found["pred"] = answer.logits
    for stage in range(len(sizes.depths)):
        found[f"sat_feature_{stage}"] = maps["satellite"][stage]
        found[f"cov_feature_{stage}"] = maps["covariates"][stage]
    for name, value in found.items():
        assert expected[name].std() > 0.05, name
        assert (value - expected[name]).abs().max() < 1e-4, name
    # The second implementation keeps angles of thousands of radians in double precision.
    assert (place - expected["geo_emb"]).abs().max() < 2e-3
    assert (own - expected["geo_pred"]).abs().max() < 2e-3


@pytest.mark.parametrize(("task", "sizes"), [("nsp", SIZES), ("soil_order", replace(DEEP, channels=8))])
def test_a_grid_of_queries_is_its_points(task, sizes):
    model = load_released(released_state(sizes, seed=3), "it", task)
    raw = probe(torch.Generator().manual_seed(1), 2)
    rows, columns = torch.arange(0.5, 250.0, 31.0), torch.tensor([0.5, 3.5, 100.25, 124.5, 125.5, 249.5])
    row = rows[:, None].expand(-1, 6).reshape(1, -1).expand(2, -1)
    column = columns[None].expand(rows.numel(), -1).reshape(1, -1).expand(2, -1)
    with torch.no_grad():
        (grid,) = DecoderGraph([model], 1.0)(rows, columns, *EncoderGraph([model])(*raw.values()))
        logits = model(raw, row, column)[task]
    points = torch.sigmoid(logits) if task == "nsp" else torch.softmax(logits, dim=-1)
    points = points.reshape(2, rows.numel(), 6, -1).permute(0, 3, 1, 2)
    assert points.std() > 0.02
    assert (grid - points).abs().max() < 1e-4


def test_with_offsets_that_are_not_swapped_the_weights_are_those_of_equation_1():
    # Worked: a query 0.25 of a token below and 0.75 right of a token's centre; the offsets of the released form are in
    # half tokens. Opposite rectangles: 3/16 (upper left), 9/16 (upper right), 1/16, 3/16.
    row, column = 2 * torch.tensor([0.25, -0.75]), 2 * torch.tensor([0.75, -0.25])
    shares = released_shares(row[:, None].expand(2, 2), column[None, :].expand(2, 2))
    assert torch.allclose(shares, torch.tensor([[3.0, 9.0], [1.0, 3.0]]) / 16, atol=1e-6)


def test_on_a_token_of_the_diagonal_that_token_stands_alone():
    shares = released_shares(torch.tensor([[0.0, 0.0], [-2.0, -2.0]]), torch.tensor([[0.0, -2.0], [0.0, -2.0]]))
    assert shares[1, 1] < 1e-8  # the only one of the four whose product is not 0
    assert float(shares.sum()) == pytest.approx(1.0)


def test_nearest_tokens_by_hand():
    # Four tokens: centres -0.75, -0.25, 0.25, 0.75. Beyond the outermost centres the outermost stands twice.
    found = released_tokens(torch.tensor([-0.999, -0.5, 0.1, 0.3, 0.99]), 4)
    assert found.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [3, 3]]


def test_aspect_comes_back_from_its_sine_and_cosine():
    degrees = torch.tensor([0.0, 1e-3, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0, 359.99])
    radians = torch.deg2rad(degrees.double())
    for length in (1.0, 0.3):
        found = aspect_degrees((length * radians.sin()).float(), (length * radians.cos()).float())
        assert (found - degrees).abs().max() < 1e-3
    generator = torch.Generator().manual_seed(0)
    sine, cosine = torch.randn(2, 500, generator=generator)
    expected = np.degrees(np.arctan2(sine.numpy(), cosine.numpy())) % 360.0
    assert np.abs(aspect_degrees(sine, cosine).numpy() - expected).max() < 1e-3


def test_aspect_of_flat_ground_is_sagas_and_of_nothing_is_nothing():
    nan = math.nan
    sine, cosine = (
        torch.tensor([0.0, -1.0, 1.0, nan, 0.0, nan, -1e-9]),
        torch.tensor([0.0, 0.0, 0.0, 1.0, nan, 0.0, 1.0]),
    )
    found = aspect_degrees(sine, cosine)
    assert found[:3].tolist() == [270.0, 270.0, 90.0]
    assert torch.isnan(found[3:6]).all()
    assert 0.0 <= float(found[6]) < 360.0


def test_scaling_by_hand():
    pixel = [78.0, 3411.0 + 9000.0, 1751.0, 8160.0, 4080.0, -350.0, 0.0, 2040.0, 9000.0]
    scaled = Scaling(BANDS).scale(torch.tensor(pixel).reshape(1, 9, 1, 1)).flatten()
    expected = [0.0, 1.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.25, 1.0]
    assert scaled.tolist() == pytest.approx(expected, abs=1e-6)
    # Aspect 180.16335 is halfway between -30.5223 and 390.849; 3071.49 m between -18.2 and 6161.18.
    ten = torch.tensor([180.16335, 3071.49] + [one.low for one in VARIABLES[2:]]).reshape(1, 10, 1, 1)
    assert Scaling(VARIABLES).scale(ten).flatten().tolist() == pytest.approx([0.5, 0.5] + [0.0] * 8, abs=1e-6)


def test_a_pixel_that_misses_one_channel_is_zero_in_all_of_its_group():
    raw = torch.full((1, 9, 4, 4), 2000.0)
    raw[0, 4, 1, 2] = math.nan
    scaled = Scaling(BANDS).scale(raw)
    assert (scaled[0, :, 1, 2] == 0).all()
    assert int((scaled == 0).sum()) == 9


def test_a_window_of_250_becomes_256_without_a_shift():
    # A plane stays a plane: bilinear, pixel edges aligned. Centre of pixel i of 256 lies at (i + 0.5) 250 / 256 - 0.5.
    plane = torch.arange(250.0).expand(1, 10, 250, 250)
    found = Scaling(VARIABLES).resize(plane)[0, 0, 7]
    expected = ((torch.arange(256.0) + 0.5) * 250 / 256 - 0.5).clamp(0, 249)
    assert torch.allclose(found, expected, atol=1e-3)


# Files


@pytest.fixture(scope="module")
def state():
    return released_state(SIZES)


def saved(folder, content, name="best_model.pth"):
    path = folder / name
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict", "model_state_dict", "parallel", "half"])
def test_checkpoints_are_read_in_every_plausible_wrapping(state, wrap, tmp_path):
    content = {
        "bare": state,
        "parallel": {"model": {f"module.{key}": value for key, value in state.items()}, "optimizer": {"step": 3}},
        "half": {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    }.get(wrap, {wrap: state, "epoch": 12, "best": 0.81})
    found = read_state(saved(tmp_path, content))
    assert found.keys() == state.keys()
    model = load_released(found, "it", "nsp")
    tolerance = 1e-2 if wrap == "half" else 0.0
    assert (model.heads["nsp"].first.weight - state["out.0.weight"]).abs().max() <= tolerance


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def test_every_tensor_that_does_not_fit_is_named_at_once(state):
    wrong = dict(state)
    lost = wrong.pop("sat_encoder.feature_extractor.features.1.0.attn.proj.bias")
    wrong["cov_encoder.feature_extractor.norm.weight"] = lost
    wrong["out.2.weight"] = wrong["out.2.weight"].T.contiguous()
    wrong["visual_mapper.1.bias"] = torch.full_like(wrong["visual_mapper.1.bias"], math.nan)
    text = refusal(load_released, wrong, 'Checkpoint "x.pth"', "nsp")
    assert "lacks sat_encoder.feature_extractor.features.1.0.attn.proj.bias" in text
    assert "unexpected cov_encoder.feature_extractor.norm.weight" in text
    assert "out.2.weight 16 x 8 in place of 8 x 16" in text
    assert "undefined numbers in visual_mapper.1.bias" in text
    assert text.count('Checkpoint "x.pth"') == 4


def test_each_tensor_is_needed_or_on_the_short_list_of_unused_ones(state):
    unused = {
        "sat_encoder.feature_extractor.norm.weight",
        "sat_encoder.feature_extractor.norm.bias",
        "sat_encoder.feature_extractor.head.weight",
        "sat_encoder.feature_extractor.head.bias",
    }
    tables = ("relative_coords_table", "relative_position_index", "attn_mask")
    for key in one_of_each_kind(state):
        without = {other: value for other, value in state.items() if other != key}
        if key in unused or key.endswith(tables):
            load_released(without, "it", "nsp")
        else:
            assert key in refusal(load_released, without, "it", "nsp")


def test_unused_tensors_change_nothing(state):
    other = {key: value + 1 if "extractor.head" in key or "attn_mask" in key else value for key, value in state.items()}
    image, query, _ = inputs(1, 5)
    with torch.no_grad():
        answers = [
            m.answer(m.image_maps(image), query[..., 1], query[..., 0]).logits for m in map(loaded, (state, other))
        ]
    assert torch.equal(*answers)


def loaded(state):
    return load_released(state, "it", "nsp")


def test_a_checkpoint_of_another_architecture_is_refused():
    satlas = random_state(swin_v2_shapes(SIZES, "backbone.backbone."))
    text = refusal(load_released, satlas, 'Checkpoint "satlas.pth"', "nsp")
    assert 'Checkpoint "satlas.pth": it lacks sat_encoder' in text
    assert "backbone.backbone.features.0.0.weight" in text
    assert "released code" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": (2, 2)}, "attention heads"),
        ({"window": 16, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8), "widths": ((4, 8),) * 4}, "exceed"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, words):
    shapes = released_shapes(replace(SIZES, **changes))
    assert words in refusal(load_released, random_state(shapes), "it", "nsp")


def test_files_that_are_no_checkpoint_are_refused(state, tmp_path):
    whole = saved(tmp_path, state).read_bytes()
    files = {
        "cut.pth": whole[: len(whole) // 2],
        "text.pth": b"git-lfs pointer, not the file",
        "empty.pth": b"",
        "page.pth": b"<html>404</html>",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        text = refusal(read_state, tmp_path / name)
        assert name in text
        assert "Traceback" not in text
    # A weight of another value: the file opens, the checksum of its record does not fit.
    flipped = bytearray(whole)
    flipped[whole.index(state["out.0.weight"].numpy().tobytes()) + 5] ^= 0x10
    (tmp_path / "flipped.pth").write_bytes(bytes(flipped))
    assert "checksum" in refusal(read_state, tmp_path / "flipped.pth")
    assert "no such file" in refusal(read_state, tmp_path / "absent.pth")
    assert "no such file" in refusal(read_state, tmp_path)


class Trap:
    """Something whose unpickling would run code."""

    def __reduce__(self):
        return (open, ("trap-was-run", "w"))


def test_nothing_in_a_checkpoint_is_run(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refusal(read_state, saved(tmp_path, {"model": state, "config": Trap()}))
    assert "state_dict()" in text
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model": Trap()}))
    refusal(read_state, tmp_path / "old.pth")
    assert not (tmp_path / "trap-was-run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds nothing"),
        ({"epoch": 3, "network": {"a": torch.zeros(1)}}, "epoch"),
        ({"module.a": torch.zeros(1), "b": torch.zeros(1)}, "others do not (b)"),
    ],
)
def test_what_holds_no_state_dict_is_refused(content, words, tmp_path):
    assert words in refusal(read_state, saved(tmp_path, content))
