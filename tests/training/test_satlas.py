"""SatlasNet's encoder weights arrive where they belong, all of them, or not at all."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

import released_reference as reference  # noqa: E402
from released_checkpoints import FULL, Sizes, one_of_each_kind, random_state, swin_v2_shapes  # noqa: E402

from miso_qgis.engine.errors import InputError  # noqa: E402
from training.conditioning import Conditioning  # noqa: E402
from training.config import SIZES, FeatureConfig, GroupConfig, ModelConfig, SizeConfig  # noqa: E402
from training.model import Miso  # noqa: E402
from training.satlas import PREFIX, UNUSED, features, load_encoder, start_from  # noqa: E402
from training.swin import SwinEncoder  # noqa: E402

torch.set_num_threads(1)

NAMES = Sizes(channels=8, depths=(2, 1, 2), heads=(2, 4, 8), window=4, hidden=12)
# The same network in our words; windows of 64 px are enough for three stages of shifted attention.
SIZE = SizeConfig(
    window_px=64,
    cell_px=1,
    patch_px=4,
    channels=8,
    depths=(2, 1, 2),
    head_channels=4,
    attention_window=4,
    position_hidden=12,
    implicit_widths=(8, 8),
    embedding=8,
)


@pytest.fixture(scope="module")
def state():
    found = random_state(swin_v2_shapes(NAMES, PREFIX), seed=4)
    found["intermediates.0.fpn.layer_blocks.0.weight"] = torch.zeros(2, 2)
    found["heads.3.layers.0.bias"] = torch.zeros(2)
    return found


def test_maps_are_those_of_the_literal_second_implementation(state):
    # In double precision, because logit scales up to 100 make single-precision rounding visible.
    encoder = SwinEncoder(9, SIZE).eval()
    load_encoder(encoder, state, "it")
    image = torch.rand(2, 9, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        found = encoder.double()(image)
        expected = reference.swin_v2({k: v.double() for k, v in state.items()}, PREFIX, image, NAMES)
    for one, other in zip(found, expected):
        assert other.std() > 0.1
        assert (one - other).abs().max() < 1e-5


def test_bands_stay_in_their_order(state):
    # A first convolution that reads band b into channel b and nothing else.
    one = dict(state)
    weight = torch.zeros(8, 9, 4, 4)
    for band in range(8):
        weight[band, band] = 1.0 / 16
    one[f"{PREFIX}features.0.0.weight"] = weight
    one[f"{PREFIX}features.0.0.bias"] = torch.zeros(8)
    encoder = SwinEncoder(9, SIZE)
    load_encoder(encoder, one, "it")
    image = torch.arange(9.0).reshape(1, 9, 1, 1).expand(1, 9, 64, 64)
    with torch.no_grad():
        assert encoder.embed(image)[0, :, 3, 5].tolist() == pytest.approx(list(range(8)), abs=1e-5)


def test_every_tensor_is_taken_or_named_as_unused(state):
    skipped = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    for key in one_of_each_kind(state):
        short = key[len(PREFIX) :] if key.startswith(PREFIX) else key
        without = {other: value for other, value in state.items() if other != key}
        unused = short in skipped or "relative_" in short or not key.startswith(PREFIX)
        if unused:
            load_encoder(SwinEncoder(9, SIZE), without, "it")
        else:
            with pytest.raises(InputError, match=f"lacks {key}"):
                load_encoder(SwinEncoder(9, SIZE), without, "it")
    assert len(UNUSED) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "backbone.backbone.features.9.0.norm1.weight": torch.ones(8)}, "unexpected"),
        (lambda s: {**s, f"{PREFIX}features.0.0.weight": torch.ones(8, 3, 4, 4)}, "8 x 3 x 4 x 4 in place of"),
        (lambda s: {k.replace("backbone.", "backbone.backbone.", 1): v for k, v in s.items()}, "lacks"),
        (lambda s: {**s, f"{PREFIX}features.2.norm.bias": torch.full((16,), math.inf)}, "infinite"),
    ],
    ids=["one too many", "three bands", "another nesting", "infinite"],
)
def test_another_checkpoint_is_refused_by_name(state, change, words):
    with pytest.raises(InputError, match=words):
        load_encoder(SwinEncoder(9, SIZE), change(state), "it")


def test_a_network_starts_from_a_file_and_keeps_the_rest(state, tmp_path):
    bands = tuple(f"band_{i}" for i in range(9))
    groups = (
        GroupConfig("satellite", bands, features(bands)),
        GroupConfig("covariates", ("slope",), (FeatureConfig("value", ("slope",)),)),
    )
    model = Miso(ModelConfig(groups, SIZE))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "satlas.pth")
    start_from(model, tmp_path / "satlas.pth")
    for name, value in model.state_dict().items():
        is_encoder = name.startswith("modalities.satellite.encoder.")
        assert is_encoder or torch.equal(value, before[name])
    kernel = model.state_dict()["modalities.satellite.encoder.embed.weight"]
    assert torch.equal(kernel, state[f"{PREFIX}features.0.0.weight"])
    with pytest.raises(InputError, match="Its groups are satellite, covariates"):
        start_from(model, tmp_path / "satlas.pth", "picture")


def test_features_come_scaled_as_the_true_colour_product():
    bands = tuple(f"band_{i}" for i in range(9))
    group = GroupConfig("satellite", bands, features(bands))
    raw = torch.tensor([1698.0, 158.0, 9000.0, 8160.0, 4080.0, 0.0, 816.0, 20000.0, math.nan]).reshape(1, 9, 1, 1)
    found = Conditioning(group, SIZE)(raw.expand(1, 9, 64, 64))[0, :, 0, 0]
    # (1698 - 78) / 3240 = 0.5; 4080 / 8160 = 0.5; 816 / 8160 = 0.1; missing is 0.
    assert found.tolist() == pytest.approx([0.5, 0.0, 1.0, 1.0, 0.5, 0.0, 0.1, 1.0, 0.0], abs=1e-6)


def test_the_paper_size_is_the_size_of_the_checkpoint():
    # Shapes of torchvision's swin_v2_b with nine bands, against parameters of our encoder: all but the keys' bias.
    shapes = swin_v2_shapes(FULL, "")
    used = [name for name in shapes if "relative_" not in name and not name.startswith(("norm", "head"))]
    keys = sum(shapes[name][0] // 3 for name in used if name.endswith("qkv.bias"))
    with torch.device("meta"):
        encoder = SwinEncoder(9, SIZES["paper"])
    assert sum(math.prod(shapes[name]) for name in used) - keys == sum(p.numel() for p in encoder.parameters())
