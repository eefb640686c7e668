"""Model folders (row R10): what is not exactly what it claims to be is refused before a session is made."""

import os
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import tiny_models
from onnx import TensorProto, external_data_helper, helper, load_model_from_string

from miso_qgis.engine.errors import InputError, ModelFolderError, RuntimeFailure
from miso_qgis.engine.graphs import PolicyError, check_graph
from miso_qgis.engine.session import Model, load_model, read_model_files


@pytest.fixture
def folder(tmp_path):
    return tiny_models.write_model(tmp_path / "model")


@pytest.fixture
def no_session(monkeypatch):
    """Fail if a session is made."""

    def refuse(*arguments, **options):
        pytest.fail("a session was made")  # no Exception, so that the engine cannot catch it

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


def rewrite(path, change):
    """Change a graph through the onnx package and sign it again, as a hostile author would."""
    model = load_model_from_string(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    tiny_models.write_sums(path.parent)


def flip_a_bit(folder):
    data = bytearray((folder / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "decoder.onnx").write_bytes(bytes(data))
    return ["decoder.onnx", "altered or damaged", "Copy the model folder again"]


def truncate(folder):
    os.truncate(folder / "encoder.onnx", 40)
    return ["encoder.onnx", "altered or damaged"]


def truncate_and_sign(folder):
    os.truncate(folder / "decoder.onnx", os.path.getsize(folder / "decoder.onnx") - 9)
    tiny_models.write_sums(folder)
    return ["decoder.onnx", "cut off"]


def empty_and_sign(folder):
    (folder / "decoder.onnx").write_bytes(b"")
    tiny_models.write_sums(folder)
    return ["decoder.onnx", "the file is empty"]


def text_and_sign(folder):
    (folder / "decoder.onnx").write_text("no model at all")
    tiny_models.write_sums(folder)
    return ["decoder.onnx", "not an ONNX model"]


def remove_a_file(folder):
    (folder / "encoder.onnx").unlink()
    return ['"encoder.onnx" is missing']


def remove_the_sums(folder):
    (folder / "SHA256SUMS").unlink()
    return ["SHA256SUMS is missing"]


def remove_the_manifest(folder):
    (folder / "manifest.json").unlink()
    tiny_models.write_sums(folder)
    return ["does not list manifest.json"]


def garble_the_sums(folder):
    (folder / "SHA256SUMS").write_text("nonsense\n")
    return ['the line "nonsense"']


def point_the_sums_elsewhere(folder):
    text = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(text + "0" * 64 + "  ../outside.onnx\n")
    return ["../outside.onnx"]


def add_a_file(folder):
    (folder / "extra.bin").write_bytes(b"x")
    return ['"extra.bin" is not listed']


def add_a_folder(folder):
    (folder / "more").mkdir()
    return ['"more" is not a file']


def link_a_file(folder):
    target = folder.parent / "elsewhere.onnx"
    os.replace(folder / "decoder.onnx", target)
    (folder / "decoder.onnx").symlink_to(target)
    return ['"decoder.onnx" is a link']


def claim_gigabytes(folder):
    with open(folder / "encoder.onnx", "r+b") as file:
        file.truncate(3_000_000_000)  # sparse: takes no space
    return ["3.0 GB", "At most 1.5 GB"]


def external_data(folder):
    def change(model):
        external_data_helper.set_external_data(model.graph.initializer[0], "../../../etc/passwd")
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL

    rewrite(folder / "decoder.onnx", change)
    return ["decoder.onnx", "external data"]


def external_data_in_an_attribute(folder):
    def change(model):
        tensor = tiny_models.constant("t", [1.0])
        external_data_helper.set_external_data(tensor, "weights.bin")
        model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))

    rewrite(folder / "decoder.onnx", change)
    return ["external data"]


def external_data_in_a_branch(folder):
    def change(model):
        tensor = tiny_models.constant("t", [1.0])
        external_data_helper.set_external_data(tensor, "weights.bin")
        value = helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])
        branch = helper.make_graph([], "branch", [], [value], initializer=[tensor])
        model.graph.node.append(helper.make_node("If", ["flag"], ["unused"], then_branch=branch, else_branch=branch))

    rewrite(folder / "decoder.onnx", change)
    return ["external data"]


def foreign_operator(folder):
    def change(model):
        model.graph.node.append(helper.make_node("Python", ["rows"], ["unused"], domain="com.example"))

    rewrite(folder / "decoder.onnx", change)
    return ["com.example"]


def foreign_domain_imported(folder):
    rewrite(folder / "decoder.onnx", lambda model: model.opset_import.append(helper.make_opsetid("com.example", 1)))
    return ["com.example"]


def foreign_operator_in_a_function(folder):
    def change(model):
        node = helper.make_node("Python", ["a"], ["b"], domain="com.example")
        model.functions.append(helper.make_function("", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))

    rewrite(folder / "decoder.onnx", change)
    return ["com.example"]


def newer_operators(folder):
    def change(model):
        model.opset_import[0].version = 99

    rewrite(folder / "decoder.onnx", change)
    return ["operator set 99"]


def newer_format(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"format": 1', '"format": 7'))
    tiny_models.write_sums(folder)
    return ["format 7 is not 1"]


def unknown_key(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"format": 1', '"format": 1, "surprise": 2'))
    tiny_models.write_sums(folder)
    return ["surprise"]


BEFORE = [
    flip_a_bit,
    truncate,
    truncate_and_sign,
    empty_and_sign,
    text_and_sign,
    remove_a_file,
    remove_the_sums,
    remove_the_manifest,
    garble_the_sums,
    point_the_sums_elsewhere,
    add_a_file,
    add_a_folder,
    link_a_file,
    claim_gigabytes,
    external_data,
    external_data_in_an_attribute,
    external_data_in_a_branch,
    foreign_operator,
    foreign_domain_imported,
    foreign_operator_in_a_function,
    newer_operators,
    newer_format,
    unknown_key,
]


@pytest.mark.parametrize("fault", BEFORE, ids=lambda fault: fault.__name__)
def test_a_faulty_folder_is_refused_before_a_session_is_made(fault, folder, no_session):
    words = fault(folder)
    with pytest.raises(ModelFolderError) as caught:
        load_model(folder, "cpu")
    for word in [*words, str(folder)]:
        assert word in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFolderError, match=r"gone.*does not exist"):
        load_model(tmp_path / "gone")


def test_any_flipped_byte_of_any_file_is_noticed(folder, no_session):
    generator = np.random.default_rng(5)
    files = [path for path in folder.iterdir() if path.name != "SHA256SUMS"]
    for _ in range(200):
        path = files[generator.integers(len(files))]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[generator.integers(len(bad))] ^= 1 << generator.integers(8)
        path.write_bytes(bytes(bad))
        with pytest.raises(ModelFolderError):
            load_model(folder, "cpu")
        path.write_bytes(good)
    with pytest.raises(pytest.fail.Exception, match="a session was made"):
        load_model(folder, "cpu")


def test_mutated_graphs_never_break_the_structural_check(folder):
    generator = np.random.default_rng(6)
    good = (folder / "decoder.onnx").read_bytes()
    for _ in range(500):
        bad = bytearray(good)
        for _ in range(generator.integers(1, 9)):
            bad[generator.integers(len(bad))] = generator.integers(256)
        cut = bytes(bad[: generator.integers(1, len(bad) + 1)])
        try:
            check_graph(cut)
        except PolicyError as error:
            assert str(error)  # noqa: PT017  # reason: passing is in order as well


def test_litter_of_file_managers_does_no_harm(folder):
    (folder / ".DS_Store").write_bytes(b"x")
    assert load_model(folder, "cpu").provider == "cpu"


# Graphs that are sound and do not fit.


def other_channels(folder):
    spec = tiny_models.manifest()
    more = replace(spec.groups[0], channels=(*spec.groups[0].channels, replace(spec.groups[0].channels[0], name="e2")))
    (folder / "encoder.onnx").write_bytes(tiny_models.encoder(replace(spec, groups=(more, spec.groups[1]))))
    return ["terrain", "[", "The manifest needs"]


def other_group(folder):
    spec = tiny_models.manifest()
    renamed = replace(spec.groups[0], name="satellite")
    (folder / "encoder.onnx").write_bytes(tiny_models.encoder(replace(spec, groups=(renamed, spec.groups[1]))))
    return ["satellite", "surface, terrain"]


def other_task(folder):
    rewrite(folder / "decoder.onnx", rename_output)
    return ["soil_order", "nsp"]


def rename_output(model):
    for node in model.graph.node:
        node.output[:] = ["soil_order" if name == "nsp" else name for name in node.output]
    model.graph.output[0].name = "soil_order"


@pytest.mark.parametrize("fault", [other_channels, other_group, other_task], ids=lambda fault: fault.__name__)
def test_graphs_that_do_not_fit_the_manifest_are_refused(fault, folder):
    words = fault(folder)
    tiny_models.write_sums(folder)
    with pytest.raises(ModelFolderError) as caught:
        load_model(folder, "cpu")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.0, -1.0), (float("nan"), 0.0)])
def test_answers_that_are_no_probabilities_are_an_error(scale, offset, folder):
    def unclip(model):
        for node in model.graph.node:
            if node.op_type == "Clip":
                node.op_type = "Identity"
                del node.input[1:]

    (folder / "decoder.onnx").write_bytes(tiny_models.decoder(tiny_models.manifest(), scale, offset))
    rewrite(folder / "decoder.onnx", unclip)
    with pytest.raises(RuntimeFailure, match="from 0 to 1 are needed"):
        load_model(folder, "cpu")


def test_a_folder_without_forest_runs_miso_alone(tmp_path):
    folder = tiny_models.write_model(tmp_path / "model", tiny_models.manifest(forests={}))
    assert load_model(folder, "cpu", ["miso"]).provider == "cpu"
    with pytest.raises(ModelFolderError, match="no Random Forest"):
        read_model_files(folder, ["miso", "rf"])


def test_the_provider_is_the_one_that_ran_and_the_reason_is_told(folder):
    model = load_model(folder, "auto")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert model.provider == "cpu"
        assert "no CUDA support" in model.provider_reason
        with pytest.raises(RuntimeFailure, match="no CUDA support"):
            load_model(folder, "cuda")
    with pytest.raises(InputError, match="tpu"):
        load_model(folder, "tpu")


def test_the_forest_alone_never_claims_the_gpu(folder, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    model = load_model(folder, "cuda", ["rf"])
    assert model.provider == "cpu"
    assert "runs on the CPU" in model.provider_reason


def test_a_listed_gpu_that_fails_leaves_the_cpu_with_the_reason(folder, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    model = load_model(folder, "auto")
    assert model.provider == "cpu"
    assert model.provider_reason.startswith("no GPU: The GPU: onnxruntime could not use it")
    assert model.predict(np.zeros((1, 4, 64, 64), np.float32))["nsp"].shape == (1, 1, 48, 48)


def test_the_batch_does_not_change_an_answer(folder):
    model = Model(read_model_files(folder), "cpu")
    windows = np.random.default_rng(0).random((5, 4, 64, 64), np.float32) * 1000
    together = model.predict(windows)["nsp"]
    one_by_one = np.concatenate([model.predict(window[None])["nsp"] for window in windows])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_allclose(together[:, 0], windows[:, 0, 8:56, 8:56] / 1000, atol=1e-6)
