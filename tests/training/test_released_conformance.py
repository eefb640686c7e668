"""The vectors of the released code are met; files of the same form are read at any size; what differs is said."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed in this environment")

import released_reference as reference  # noqa: E402
from released_checkpoints import Sizes, released_state  # noqa: E402

from training import cli  # noqa: E402
from training.released_conformance import TOLERANCE, conform  # noqa: E402

torch.set_num_threads(1)

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
SIZES = Sizes(
    channels=12,
    depths=(2, 1, 2, 1),
    heads=(1, 2, 4, 8),
    embedding=24,
    widths=((6, 12), (6, 12), (12, 24), (24, 24)),
    outputs=7,
    frequencies=8,
)


def real(name):
    path = VECTORS / name
    if not path.is_file():
        pytest.skip(f"vectors of the released code are not beside the checkout ({path.name})")
    return path


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "outputs"), [("released_code_nsp.npz", 16), ("released_preprocessing.npz", 2)], ids=["network", "scaling"]
)
def test_every_output_of_the_released_code_is_met(name, outputs):
    differences = conform(real(name))
    assert len(differences) == outputs
    for one in differences:
        assert one.spread > 0.1, one.name
        assert one.largest < TOLERANCE, one


@pytest.mark.real_data
def test_the_second_implementation_of_the_tests_meets_them_too():
    with np.load(real("released_code_nsp.npz")) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    sizes = Sizes(channels=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), embedding=128, frequencies=64)
    state = {key[8:]: value for key, value in arrays.items() if key.startswith("weights/")}
    image = arrays["input/image_uint8"].float() / 255.0
    found = reference.answers(state, image, arrays["input/query_xy"], arrays["input/geo_xy"], sizes)
    for name in ("sat_emb", "cov_emb", "visual_emb", "pred", "implicit_sat_1", "sat_feature_3", "cov_feature_3"):
        assert (found[name] - arrays[f"output/{name}"]).abs().max() < 1e-4, name
    assert (found["geo_emb"] - arrays["output/geo_emb"]).abs().max() < 1e-3


@pytest.fixture(scope="module")
def vectors():
    """A file's content of another size: seven outputs, two images; answered by the second implementation."""
    state = released_state(SIZES, seed=11)
    generator = torch.Generator().manual_seed(12)
    image = torch.randint(0, 256, (2, 19, 256, 256), generator=generator, dtype=torch.uint8)
    query = torch.randint(0, 250, (2, 30, 2), generator=generator) / 125.0 - 0.996
    # Small coordinates, so that the second implementation's double-precision angles are those of single precision.
    geo = (torch.rand(2, 30, 2, generator=generator) - 0.5) * 1e-3
    with torch.no_grad():
        found = reference.answers(state, image.float() / 255.0, query, geo, SIZES)
    arrays = {f"weights/{name}": value.numpy() for name, value in state.items()}
    arrays.update({"input/image_uint8": image.numpy(), "input/query_xy": query.numpy(), "input/geo_xy": geo.numpy()})
    for name, value in found.items():
        thin = value[:, ::4, ::4] if "_feature_" in name and name[-1] in "012" else value
        arrays[f"output/{name}"] = thin.numpy()
    return arrays


def run(arrays, tmp_path, capsys):
    path = tmp_path / "vectors.npz"
    np.savez(path, **arrays)
    status = cli.main(["conformance", str(path)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_another_size_with_seven_outputs_and_two_images_is_met(vectors, tmp_path, capsys):
    status, out, _ = run(vectors, tmp_path, capsys)
    assert status == 0, out
    outputs = [key for key in vectors if key.startswith("output/")]
    assert f"All {len(outputs)} outputs agree" in out
    assert len(outputs) == 23
    for key in outputs:
        assert f"\n{key[len('output/') :]} " in out


@pytest.mark.parametrize("change", [2e-4, np.nan], ids=["too far", "undefined"])
def test_an_output_that_differs_is_named_and_the_status_is_not_zero(vectors, change, tmp_path, capsys):
    arrays = dict(vectors)
    arrays["output/cov_feature_2"] = arrays["output/cov_feature_2"].copy()
    arrays["output/cov_feature_2"][1, 2, 3, 4] += change
    status, out, _ = run(arrays, tmp_path, capsys)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines() if line.endswith("DIFFERS")] == ["cov_feature_2"]
    assert "1 of 23 outputs differ" in out


def without(arrays, *keys):
    return {key: value for key, value in arrays.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {**a, "output/surprise": np.zeros(3)}, "output/surprise is unknown"),
        (lambda a: {**a, "output/pred": np.zeros((2, 31, 7))}, "pred has the shape (2, 31, 7)"),
        (lambda a: without(a, "weights/out.4.bias"), "lacks out.4.bias"),
        (lambda a: without(a, "input/geo_xy"), "input/geo_xy is not there"),
        (lambda a: {**a, "input/image_uint8": np.zeros((2, 19, 64, 64), np.uint8)}, "(2, 19, 64, 64)"),
        (lambda a: {"other": np.zeros(3)}, "it holds other"),
    ],
)
def test_a_file_that_cannot_be_compared_is_refused(vectors, change, words, tmp_path, capsys):
    status, _, err = run(change(vectors), tmp_path, capsys)
    assert status == 2
    assert words in err
    assert 'vectors.npz"' in err


def test_files_that_are_no_archive_are_refused(tmp_path, capsys):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("cut.npz", "single.npy", "absent.npz"):
        assert cli.main(["conformance", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


def preprocessing(generator):
    """A raw window with nodata, and what the released code's formulas make of it, in numpy and by hand."""
    satellite = generator.integers(-300, 11000, (250, 250, 9)).astype(np.int16)
    low = np.array([-30.5223, -18.2, -0.0614807, -0.279193, -2328630, 0.336838, -151.879, 101.981, -121.997, -39.7864])
    high = np.array([390.849, 6161.18, 0.195017, 84.0483, 36558200, 26.324, 135.04, 10187.9, 67.3781, 1.4687])
    covariates = (low + generator.uniform(-0.1, 1.1, (250, 250, 10)) * (high - low)).astype(np.float32)
    masks = generator.random((2, 250, 250)) < 0.03
    satellite[masks[0]], covariates[masks[1]] = -32767, -3e38
    bounds = np.array([[78, 3318], [158, 3411], [167, 3335]] + [[0, 8160]] * 6)
    first = np.clip((np.clip(satellite, 0, 10000) - bounds[:, 0]) / (bounds[:, 1] - bounds[:, 0]), 0, 1)
    second = (np.clip(covariates.astype(np.float64), low, high) - low) / (high - low)
    first[masks[0]], second[masks[1]] = 0, 0
    scaled = np.concatenate([first, second], axis=2).transpose(2, 0, 1)
    at = np.clip((np.arange(256) + 0.5) * 250 / 256 - 0.5, 0, 249)
    before = np.minimum(np.floor(at).astype(int), 248)
    share = at - before
    rows = scaled[:, before] * (1 - share)[:, None] + scaled[:, before + 1] * share[:, None]
    resized = rows[:, :, before] * (1 - share) + rows[:, :, before + 1] * share
    return {
        "raw_satellite": satellite,
        "raw_covariates": covariates,
        "satellite_mask": masks[0],
        "covariates_mask": masks[1],
        "normalised_250": scaled[:, ::5, ::5].astype(np.float32),
        "model_input_256": resized[:, ::4, ::4].astype(np.float32),
    }


def test_a_window_scaled_and_resized_by_hand_is_met(tmp_path, capsys):
    arrays = preprocessing(np.random.default_rng(4))
    status, out, _ = run(arrays, tmp_path, capsys)
    assert status == 0, out
    assert "All 2 outputs agree" in out
    assert run(without(arrays, "satellite_mask", "covariates_mask"), tmp_path, capsys)[0] == 0
    arrays["normalised_250"][3, 4, 5] += 0.01
    status, out, _ = run(arrays, tmp_path, capsys)
    assert status == 1
    assert "normalised_250" in out.splitlines()[2]
