"""Laws of the network's parts: offsets, blend, attention windows, losses, missing values."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

from training.conditioning import Conditioning, average_cells, fit_scales  # noqa: E402
from training.config import SIZES, FeatureConfig, GroupConfig, ModelConfig, SizeConfig  # noqa: E402
from training.implicit import ImplicitFunction, neighbours  # noqa: E402
from training.losses import info_nce, masked_bce  # noqa: E402
from training.model import GeoEncoder, Miso, scale_coordinates  # noqa: E402
from training.swin import Block, SwinEncoder, WindowAttention, from_windows, shift_mask, to_windows  # noqa: E402

SIZE = SizeConfig(window_px=64, cell_px=4, patch_px=4, channels=8, head_channels=4, implicit_widths=(8, 8), embedding=8)


def linear_reader(channels: int, token_px: float, tokens: int) -> ImplicitFunction:
    """An implicit function whose f returns z_t (first two channels, non-negative) and whose tail is the identity."""
    f = ImplicitFunction(channels, (2, 2), 2, token_px, tokens)
    with torch.no_grad():
        for linear in (f.cell, f.middle, f.last, f.output):
            linear.weight.copy_(torch.eye(*linear.weight.shape))
            linear.bias.zero_()
        f.offset.weight.zero_()
    f.norm = torch.nn.Identity()
    return f


def test_blend_on_a_two_by_two_map_is_the_opposite_rectangles_by_hand():
    # Tokens of 8 px: centres at 4 and 12. Query (row 6, column 10): a quarter down, three quarters right.
    # Opposite rectangles: (0.75, 0.25), (0.75, 0.75), (0.25, 0.25), (0.25, 0.75) -> 3/16, 9/16, 1/16, 3/16.
    f = linear_reader(2, 8.0, 2)
    z = torch.tensor([[[[1.0, 0.0], [10.0, 0.0]], [[100.0, 0.0], [1000.0, 0.0]]]])
    found = f(z, torch.tensor([[6.0]]), torch.tensor([[10.0]]))[0, 0, 0]
    assert float(found.detach()) == pytest.approx((3 * 1 + 9 * 10 + 1 * 100 + 3 * 1000) / 16)


def test_neighbours_of_the_worked_example():
    near = neighbours(torch.tensor([6.0]), 8.0, 4)
    assert near.token.tolist() == [[0, 1]]
    assert near.offset.tolist() == [[0.25, -0.75]]
    assert near.weight.tolist() == [[0.75, 0.25]]


def test_beyond_the_outermost_centre_the_outermost_token_stands_alone():
    near = neighbours(torch.tensor([1.0, 31.0]), 8.0, 4)
    assert near.token.tolist() == [[0, 0], [3, 3]]
    assert torch.allclose(near.weight.sum(-1), torch.ones(2))
    assert near.offset[0].tolist() == [-0.375, -0.375]


def test_a_map_of_its_own_coordinates_comes_back_unshifted_and_untransposed():
    tokens, token_px = 6, 8.0
    centre = (torch.arange(tokens) + 0.5) * token_px
    rows, columns = torch.meshgrid(centre, centre, indexing="ij")
    f = linear_reader(2, token_px, tokens)
    generator = torch.Generator().manual_seed(3)
    row = torch.rand(1, 50, generator=generator) * 40 + 4  # between the outermost centres
    column = torch.rand(1, 50, generator=generator) * 40 + 4
    found = f(torch.stack([rows, columns], dim=-1)[None], row, column)
    assert torch.allclose(found[0, :, 0], row[0], atol=1e-4)
    assert torch.allclose(found[0, :, 1], column[0], atol=1e-4)


def test_offsets_reach_f_as_row_then_column_in_tokens():
    f = ImplicitFunction(2, (4, 4), 4, 8.0, 2)
    with torch.no_grad():
        for linear in (f.middle, f.last, f.output):
            linear.weight.copy_(torch.eye(4))
            linear.bias.zero_()
        f.cell.weight.zero_()
        f.cell.bias.zero_()
        f.offset.weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    f.norm = torch.nn.Identity()
    # Exactly on token (0, 1)'s centre the offset is zero and its weight is one.
    on = f(torch.randn(1, 2, 2, 2), torch.tensor([[4.0]]), torch.tensor([[12.0]]))
    assert torch.allclose(on, torch.zeros(1, 1, 4), atol=1e-6)
    # Row 6 is 0.25 below the upper centre and 0.75 above the lower one: E|row offset, positive part| = 0.75 * 0.25.
    between = f(torch.randn(1, 2, 2, 2), torch.tensor([[6.0]]), torch.tensor([[12.0]]))
    assert torch.allclose(between, torch.tensor([[[0.1875, 0.1875, 0.0, 0.0]]]), atol=1e-6)


def test_the_gain_of_the_offset_is_a_factor_of_its_weights():
    torch.manual_seed(3)
    damped = ImplicitFunction(4, (8, 8), 6, 8.0, 5, 0.25)
    plain = ImplicitFunction(4, (8, 8), 6, 8.0, 5)
    plain.load_state_dict(damped.state_dict())
    features, rows, columns = torch.randn(1, 5, 5, 4), torch.rand(1, 30) * 40, torch.rand(1, 30) * 40
    with torch.no_grad():
        assert not torch.allclose(plain(features, rows, columns), damped(features, rows, columns), atol=1e-3)
        plain.offset.weight *= 0.25
        assert torch.allclose(plain(features, rows, columns), damped(features, rows, columns), atol=1e-6)


def test_a_stage_without_blocks_hands_on_its_embedded_tokens():
    encoder = SwinEncoder(3, replace(SIZE, depths=(0, 2)))
    features = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        first, second = encoder(features)
        assert torch.equal(first, encoder.norm(encoder.embed(features).permute(0, 2, 3, 1)))
    assert second.shape == (1, 8, 8, 16)


def test_windows_are_cut_and_joined_without_loss():
    tokens = torch.arange(2 * 12 * 12 * 3).reshape(2, 12, 12, 3)
    assert torch.equal(from_windows(to_windows(tokens, 4), 4, 12, 12), tokens)
    assert torch.equal(to_windows(tokens, 4)[0, 1, :4, 0], tokens[0, 0, 4:8, 0])


def test_shifted_attention_does_not_leak_across_the_border():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, map_size=16, side=8, shift=4, hidden=16).eval()
    one = torch.randn(1, 16, 16, 8)
    other = one.clone()
    other[:, :4] += 1.0  # the first rows, which rolling puts beside the last ones
    changed = (attention(one) - attention(other)).abs().amax(dim=(0, 3)) > 1e-6
    assert changed[:4].all()
    assert not changed[4:].any()


def test_shift_mask_of_a_small_map_by_hand():
    # Map of 4, windows of 2, shift 1: after rolling, rows read 1 2 3 0. The last window of a row holds 3 and 0.
    mask = shift_mask(4, 2, 1)
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    assert mask[1].lt(0).tolist() == [[False, True, False, True], [True, False, True, False]] * 2


def test_a_stage_no_larger_than_the_attention_window_is_not_shifted():
    assert Block(8, 8, is_shifted=True, size=SIZE).attention.mask is None
    assert Block(8, 16, is_shifted=True, size=SIZE).attention.shift == 4


def test_unshifted_attention_stays_in_its_window():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, map_size=16, side=8, shift=0, hidden=16)
    one = torch.randn(1, 16, 16, 8)
    other = one.clone()
    other[:, 3, 11] += 1.0
    changed = (attention(one) - attention(other)).abs().amax(dim=(0, 3)) > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, 8:] = True
    assert torch.equal(changed, expected)


def test_baked_position_bias_changes_nothing():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, map_size=8, side=4, shift=2, hidden=16)
    tokens = torch.randn(1, 8, 8, 8)
    before = attention(tokens)
    attention.bake()
    assert torch.equal(attention(tokens), before)


def test_stages_halve_and_double():
    maps = SwinEncoder(3, SIZE)(torch.randn(2, 3, 16, 16))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 8), (2, 8, 8, 16), (2, 4, 4, 32), (2, 2, 2, 64)]


def test_info_nce_by_hand():
    # Two orthogonal pairs at temperature 0.5: each row has similarities (2, 0), so the loss is log(1 + e^-2).
    eye = torch.eye(2)
    assert float(info_nce(eye, eye, 0.5)) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    # Swapped pairs: log(1 + e^2). Length does not matter.
    assert float(info_nce(3 * eye, eye.flip(0), 0.5)) == pytest.approx(math.log(1 + math.exp(2)), abs=1e-6)


def test_info_nce_of_constant_views_is_the_logarithm_of_the_batch():
    assert float(info_nce(torch.ones(7, 3), torch.ones(7, 3), 0.1)) == pytest.approx(math.log(7), abs=1e-5)


def test_bce_counts_only_what_counts():
    logit = torch.tensor([0.0, 50.0, math.log(3.0)])
    label = torch.tensor([1.0, 0.0, 1.0])
    counts = torch.tensor([True, False, True])
    assert float(masked_bce(logit, label, counts)) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-6)
    assert float(masked_bce(logit, label, torch.zeros(3, dtype=torch.bool))) == 0.0


def conditioning(*features: FeatureConfig, channels=("a", "b")) -> Conditioning:
    return Conditioning(GroupConfig("g", tuple(channels), features), SIZE)


def test_pooling_takes_the_mean_of_what_is_known():
    raw = torch.full((1, 2, 64, 64), float("nan"))
    raw[0, 0, 0, :3] = torch.tensor([3.0, 6.0, 9.0])
    cells = average_cells(raw, 4)
    assert cells.shape == (1, 2, 16, 16)
    assert float(cells[0, 0, 0, 0]) == pytest.approx(6.0)
    assert int(torch.isfinite(cells).sum()) == 1


def test_windows_and_their_cells_give_the_same_features():
    raw = torch.rand(1, 2, 64, 64)
    raw[0, 0, 5:30, 7:40] = float("nan")
    features = conditioning(FeatureConfig("value", ("a",)), FeatureConfig("relative", ("a",), 120.0))
    assert torch.equal(features(raw), features(average_cells(raw, 4)))


def test_missing_is_zero_after_scaling_and_nothing_is_nan():
    raw = torch.full((1, 2, 64, 64), float("nan"))
    raw[0, :, :20, :20] = 1e9
    features = conditioning(
        FeatureConfig("value", ("a",), centre=5.0, scale=2.0),
        FeatureConfig("relative", ("a",), 200.0, centre=1.0),
        FeatureConfig("mean", ("b",), 100.0, centre=-3.0),
        FeatureConfig("gradient", ("a", "b"), 100.0),
    )(raw)
    assert torch.isfinite(features).all()
    assert features.abs().max() <= 4.0
    assert not features[0, :2, 8:, 8:].any()


def test_relative_elevation_of_a_plane_is_zero_and_of_a_peak_positive():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    plane = (3 * rows + 2 * columns)[None, None]
    relative = conditioning(FeatureConfig("relative", ("a",), 80.0, scale=100.0), channels=("a",))
    inner = relative(plane)[0, 0, 2:-2, 2:-2]
    assert torch.allclose(inner, torch.zeros_like(inner), atol=1e-4)
    peak = torch.zeros(1, 1, 64, 64)
    peak[0, 0, 32:36, 32:36] = 25.0
    assert float(relative(peak)[0, 0, 8, 8]) == pytest.approx((25.0 - 1.0) / 100.0)  # 25 cells in the square


def test_gradient_is_the_components_product_with_the_tangent():
    raw = torch.stack([torch.full((64, 64), 0.5), torch.full((64, 64), 45.0)])[None]
    value = conditioning(FeatureConfig("gradient", ("a", "b"), scale=0.25))(raw)
    assert torch.allclose(value, torch.full_like(value, 2.0), atol=1e-5)


def test_scales_are_median_and_half_the_range_and_leave_shares_alone():
    raw = torch.rand(2, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    raw[:, 0] = raw[:, 0] * 1000 + 200
    raw[:, 1] = (raw[:, 1] > 0.9).float()
    pooled = conditioning(FeatureConfig("value", ("a",)), FeatureConfig("value", ("b",)))
    centres, scales = fit_scales(pooled, average_cells(raw, 4))
    cells = raw[:, 0].reshape(2, 16, 4, 16, 4).mean(dim=(2, 4)).numpy()
    assert centres[0] == pytest.approx(float(np.median(cells)), rel=1e-3)
    assert scales[0] == pytest.approx(float(np.subtract(*np.quantile(cells, [0.95, 0.05]))) / 2, rel=1e-3)
    assert centres[1] == pytest.approx(0.1, abs=0.02)
    assert scales[1] == 0.5


def test_geographic_encoding_by_hand():
    geo = GeoEncoder(2, 4)
    encoded = geo.encode(torch.tensor([0.25, -0.5]))
    r = math.sqrt(0.5)
    expected = [0.25, -0.5, r, -1.0, 1.0, 0.0, r, 0.0, 0.0, -1.0]
    assert torch.allclose(encoded, torch.tensor(expected), atol=1e-6)


def test_corners_of_the_akveg_grid_scale_to_one():
    corners = scale_coordinates(
        torch.tensor([-2199995.0, 1500005.0], dtype=torch.float64), torch.tensor([2400005.0, 5.0], dtype=torch.float64)
    )
    assert corners.tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def small_model() -> Miso:
    torch.manual_seed(5)
    groups = (
        GroupConfig("terrain", ("elevation",), (FeatureConfig("value", ("elevation",), scale=100.0),)),
        GroupConfig("surface", ("shrub", "forest"), (FeatureConfig("value", ("shrub",)),)),
    )
    return Miso(ModelConfig(groups, SIZE, {"nsp": 1, "orders": 3})).eval()


def test_every_task_answers_with_its_number_of_outputs_and_nothing_is_nan():
    model = small_model()
    raw = {"terrain": torch.randn(2, 1, 64, 64), "surface": torch.rand(2, 2, 64, 64)}
    raw["terrain"][0, :, 10:30, 5:] = float("nan")
    raw["surface"][1] = float("nan")
    out = model(raw, torch.rand(2, 9) * 64, torch.rand(2, 9) * 64)
    assert out["nsp"].shape == (2, 9, 1)
    assert out["orders"].shape == (2, 9, 3)
    assert all(torch.isfinite(logits).all() for logits in out.values())


def test_windows_of_a_batch_do_not_influence_each_other():
    model = small_model()
    raw = {"terrain": torch.randn(3, 1, 64, 64), "surface": torch.rand(3, 2, 64, 64)}
    rows, columns = torch.rand(3, 9) * 64, torch.rand(3, 9) * 64
    together = model(raw, rows, columns)["nsp"]
    alone = model({name: window[1:2] for name, window in raw.items()}, rows[1:2], columns[1:2])["nsp"]
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_a_feature_that_names_no_channel_of_its_group_is_refused():
    with pytest.raises(ValueError, match="slope"):
        GroupConfig("terrain", ("elevation",), (FeatureConfig("value", ("slope",)),))


def group(name: str, count: int) -> GroupConfig:
    channels = tuple(f"{name}_{i}" for i in range(count))
    return GroupConfig(name, channels, tuple(FeatureConfig("value", (channel,)) for channel in channels))


def test_sizes_are_as_large_as_the_papers():
    # torchvision counts 87,930,848 for swin_v2_b with its classifier of 1,025,000; other position MLPs and channels
    # make up the rest. The released network has 212 million, its classifier and larger geographic branch included;
    # without these two and with the paper's geographic encoder 205 remain. `small` is to lie between 5 and 7.5.
    with torch.device("meta"):
        groups = (group("satellite", 9), group("covariates", 11))
        paper = Miso(ModelConfig(groups, SIZES["paper"]))
        small = Miso(ModelConfig(groups, SIZES["small"]))
    encoder = paper.modalities["satellite"].encoder
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(86.9e6, rel=0.005)
    assert sum(p.numel() for p in paper.parameters()) == pytest.approx(205e6, rel=0.005)
    assert 5e6 < sum(p.numel() for p in small.parameters()) < 7.5e6


def test_paper_widths_of_the_implicit_functions_grow_from_stage_to_stage():
    with torch.device("meta"):
        model = Miso(ModelConfig((group("satellite", 9),), SIZES["paper"]))
    found = [
        (f.cell.in_features + f.offset.in_features, f.cell.out_features, f.middle.out_features, f.last.out_features)
        for f in model.modalities["satellite"].implicit
    ]
    d = 1024
    assert found == [
        (d // 8 + 2, d // 4, d // 2, d),
        (d // 4 + 2, d // 4, d // 2, d),
        (d // 2 + 2, d // 2, d, d),
        (d + 2, d, d, d),
    ]


def test_widths_by_stage_must_fit_the_stages():
    with pytest.raises(ValueError, match="2 pairs of implicit widths do not fit 4 stages"):
        SizeConfig(implicit_widths_by_stage=((8, 8), (8, 8)))
    assert SizeConfig(implicit_widths=(16, 32)).implicit(3) == (16, 32)


def test_heads_that_cannot_share_a_stage_evenly_are_refused():
    with pytest.raises(ValueError, match="head_channels 12 makes 5 heads of the 64 channels of stage 2"):
        SizeConfig(channels=32, head_channels=12, depths=(0, 2, 2))
    SizeConfig(channels=32, head_channels=12, depths=(0, 0), window_px=64)  # no blocks, no heads
