"""A model folder, checked before anything of it is run, and its graphs in the ONNX runtime.

Order of the checks: SHA256SUMS, manifest, structure of each graph, session, names and shapes, one run. A bit-flipped
model loads and runs without a word (20 of 20 tried), so the digests come first; and what the runtime says it can use is
not what works, so the execution provider is the one that has run the model.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .errors import InputError, ModelFolderError, Problem, RuntimeFailure
from .graphs import LARGEST_BYTES, PolicyError, check_graph
from .manifest import Manifest, parse_manifest

FloatArray = NDArray[np.float32]

SUMS = "SHA256SUMS"
_ENCODER, _DECODER = "encoder.onnx", "decoder.onnx"
# Files that file managers leave behind; they are neither listed nor read.
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
_COPY_AGAIN = "Copy the model folder again from where you got it."
# Rows of queries per decoder call: what it computes in between stays in the cache (1.4 times as fast as all rows).
_DECODE_ROWS = 32
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# CPU and GPU may differ by rounding; more than this is a fault of the installation.
_PROVIDER_TOLERANCE = 1e-3
# Rounding of several classes' probabilities; independent ones (sigmoid in place of softmax) miss 1 by far more.
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ModelFiles:
    """A model folder whose files are what SHA256SUMS says.

    Attributes:
        folder: The folder.
        manifest: Its manifest.
        digest: SHA-256 of SHA256SUMS: the identity of the model.
        graphs: Content of each ONNX file, by name, as it was checked.
    """

    folder: Path
    manifest: Manifest
    digest: str
    graphs: Dict[str, bytes] = field(repr=False)


def read_model_files(folder: Path, models: Sequence[str] = ("miso", "rf")) -> ModelFiles:
    """Read and check a model folder without making a session.

    Args:
        folder: The folder; it may itself be reached through a link, its files may not.
        models: Which graphs to read: ``miso``, ``rf``.

    Raises:
        ModelFolderError: If a file is missing, altered, extra, a link, too large, or not allowed.
    """
    root = Path(folder)
    name = f'Model folder "{root}"'
    if not root.is_dir():
        found = "it does not exist." if not root.exists() else "it is not a folder."
        needed = f"A folder with manifest.json, {_ENCODER}, {_DECODER} and {SUMS} is needed."
        raise ModelFolderError(name, found, needed, "Choose the model folder again.")
    contents, digest = _checked_contents(name, root.resolve())
    if "manifest.json" not in contents:
        raise ModelFolderError(name, f"{SUMS} does not list manifest.json.", "A model folder needs one.", _COPY_AGAIN)
    manifest = parse_manifest(_decoded(name, contents["manifest.json"]), str(root / "manifest.json"))
    wanted: List[str] = [_ENCODER, _DECODER] if "miso" in models else []
    if "rf" in models:
        wanted += [forest.file for forest in manifest.forests.values()]
        if not manifest.forests:
            found = "the model holds no Random Forest."
            remedy = "Run MISO alone (command line: --models miso)."
            raise ModelFolderError(name, found, "One is needed to run the Random Forest.", remedy)
    problems: List[Problem] = []
    graphs: Dict[str, bytes] = {}
    for file in dict.fromkeys(wanted):
        if file not in contents:
            problems.append(Problem(name, f"{file} is missing.", "The manifest needs it.", _COPY_AGAIN))
            continue
        try:
            check_graph(contents[file])
            graphs[file] = contents[file]
        except PolicyError as error:
            needed = "A single self-contained file of standard operators is needed."
            problems.append(Problem(f'Model file "{root / file}"', f"{error}.", needed, "Export the model again."))
    if problems:
        raise ModelFolderError.of(problems)
    return ModelFiles(root, manifest, digest, graphs)


def _checked_contents(name: str, root: Path) -> Tuple[Dict[str, bytes], str]:
    """Read every file of the folder and compare it with SHA256SUMS; all differences are reported at once."""
    listed, digest = _read_sums(name, root)
    problems: List[Problem] = []
    contents: Dict[str, bytes] = {}
    present = [entry for entry in sorted(root.iterdir()) if entry.name not in (*_LITTER, SUMS)]
    for entry in present:
        if entry.is_symlink():
            found = f'"{entry.name}" is a link to another file.'
            problems.append(Problem(name, found, "Every file must lie in the folder itself.", _COPY_AGAIN))
        elif not entry.is_file():
            found = f'"{entry.name}" is not a file.'
            problems.append(Problem(name, found, "A model folder holds files only.", "Remove it."))
        elif entry.name not in listed:
            found = f'"{entry.name}" is not listed in {SUMS}.'
            problems.append(Problem(name, found, "Every file must be listed there.", "Remove it, or copy again."))
        elif entry.stat().st_size > LARGEST_BYTES:
            found = f'"{entry.name}" has {entry.stat().st_size / 1e9:.1f} GB.'
            needed = f"At most {LARGEST_BYTES / 1e9:.1f} GB are allowed."
            problems.append(Problem(name, found, needed, "Use a model of this plugin's form."))
        else:
            data = entry.read_bytes()
            if hashlib.sha256(data).hexdigest() != listed[entry.name]:
                found = f'"{entry.name}" is not the file that {SUMS} describes: it was altered or damaged.'
                needed = "An unaltered file is needed, because a damaged model gives wrong maps without a sign."
                problems.append(Problem(name, found, needed, _COPY_AGAIN))
            contents[entry.name] = data
    for missing in sorted(set(listed) - {entry.name for entry in present}):
        problems.append(Problem(name, f'"{missing}" is missing.', f"{SUMS} lists it.", _COPY_AGAIN))
    if problems:
        raise ModelFolderError.of(problems)
    return contents, digest


def _read_sums(name: str, root: Path) -> Tuple[Dict[str, str], str]:
    path = root / SUMS
    if path.is_symlink() or not path.is_file():
        found = f"{SUMS} is missing." if not path.exists() else f"{SUMS} is not a plain file."
        needed = "It is needed to tell whether the model is unaltered."
        raise ModelFolderError(name, found, needed, f"{_COPY_AGAIN} For your own model: sha256sum * > {SUMS}")
    data = path.read_bytes()
    listed: Dict[str, str] = {}
    for line in _decoded(name, data).splitlines():
        digest, _, rest = line.partition(" ")
        file = rest[1:]  # one mark follows the blank: a blank for text, an asterisk for binary
        plain = len(digest) == 64 and rest[:1] in (" ", "*") and file and not set(file) & set('/\\:"')
        if not plain or file in ("..", "."):
            needed = "Lines of the form that sha256sum writes are needed, with names of files in the folder."
            raise ModelFolderError(name, f'{SUMS} has the line "{line[:120]}".', needed, _COPY_AGAIN)
        listed[file] = digest.lower()
    return listed, hashlib.sha256(data).hexdigest()


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFolderError(name, "a text file of it is not UTF-8.", "UTF-8 is needed.", _COPY_AGAIN) from error


class Model:
    """The graphs of a model, ready to run. Safe to call from several threads.

    Attributes:
        files: The checked folder.
        provider: ``cpu`` or ``cuda``: what ran the model once, and runs it now.
        provider_reason: Why the other one is not used.
        session_s: Seconds spent inside the runtime so far, summed over threads.
    """

    def __init__(self, files: ModelFiles, provider: str = "auto") -> None:
        """Make the sessions and run the model once.

        Raises:
            InputError: If ``provider`` is unknown.
            ModelFolderError: If a graph does not fit the manifest.
            RuntimeFailure: If the model cannot be run, or not on the provider that was asked for.
        """
        self.files = files
        self.manifest = files.manifest
        self.session_s = 0.0
        self._lock = threading.Lock()
        self._sessions: Dict[str, Any] = {}
        if provider not in ("auto", "cpu", "cuda"):
            raise InputError("Provider", f'"{provider}" is unknown.', "auto, cpu or cuda is needed.", "Choose one.")
        self.provider, self.provider_reason = "cpu", "cpu was asked for"
        if provider == "cpu" or _ENCODER not in files.graphs:
            if provider != "cpu":
                self.provider_reason = "the Random Forest alone was asked for, which runs on the CPU"
            self._start(_CPU)
            self._try_once()
            return
        reason = self._try_cuda()
        if reason is None:
            self.provider, self.provider_reason = "cuda", "the GPU ran the model and agreed with the CPU"
        elif provider == "cuda":
            remedy = "Choose auto or cpu, or set the engine up again with GPU support."
            raise RuntimeFailure("Provider cuda", f"{reason}.", "A working NVIDIA GPU is needed for it.", remedy)
        else:
            self.provider_reason = f"no GPU: {reason}"

    def _try_cuda(self) -> Optional[str]:
        """Try the GPU, leave working CPU sessions if it fails, and return why it failed."""
        self._start(_CPU)
        expected = self._try_once()
        if _CUDA not in onnxruntime.get_available_providers():
            return "the installed onnxruntime has no CUDA support"
        on_cpu = self._sessions
        try:
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()
            self._start(_CUDA)
            if any(_CUDA not in session.get_providers() for session in self._networks()):
                raise RuntimeFailure("The GPU", "onnxruntime could not use it (driver or CUDA libraries missing)")
            seen = self._try_once()
            worst = max((float(np.abs(seen[key] - expected[key]).max()) for key in expected), default=0.0)
            if worst > _PROVIDER_TOLERANCE:
                raise RuntimeFailure("The GPU", f"its result differs from the CPU's by {worst:.2g}")
        except Exception as error:  # reason: the runtime's errors share no base, and the CPU is a full answer
            self._sessions = on_cpu
            return " ".join(str(error).split())[:300].rstrip(".")
        return None

    def _networks(self) -> List[Any]:
        return [self._sessions[file] for file in (_ENCODER, _DECODER) if file in self._sessions]

    def _start(self, provider: str) -> None:
        options = onnxruntime.SessionOptions()
        # One thread per call: two calls side by side are 1.5 to 1.9 times faster than one call with two threads.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena never gives memory back
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        sessions: Dict[str, Any] = {}
        for file, data in self.files.graphs.items():
            # Trees gain nothing from a GPU that would pay for the copies.
            wanted = [provider] if provider == _CPU or file not in (_ENCODER, _DECODER) else [provider, _CPU]
            wanted = wanted if file in (_ENCODER, _DECODER) else [_CPU]
            try:
                sessions[file] = onnxruntime.InferenceSession(data, sess_options=options, providers=wanted)
            except Exception as error:  # reason: the runtime's errors share no base
                name = f'Model file "{self.files.folder / file}"'
                needed = "A model that this onnxruntime can run is needed."
                text = " ".join(str(error).split())[:300]
                raise ModelFolderError(name, f"onnxruntime refuses it ({text}).", needed, _COPY_AGAIN) from error
        self._sessions = sessions
        self._check_interface()

    def _check_interface(self) -> None:
        """Compare names and shapes of all graphs with the manifest; all differences at once."""
        problems: List[Problem] = []
        manifest = self.manifest

        def need(file: str, what: str, found: Sequence[str], needed: Sequence[str]) -> None:
            if set(found) != set(needed):
                text = f"its {what} are {', '.join(sorted(found))}."
                wanted = f"The manifest needs {', '.join(sorted(needed))}."
                problems.append(Problem(f'Model file "{self.files.folder / file}"', text, wanted, _COPY_AGAIN))

        if _ENCODER in self._sessions:
            encoder, decoder = self._sessions[_ENCODER], self._sessions[_DECODER]
            maps = [output.name for output in encoder.get_outputs()]
            need(_ENCODER, "inputs", [i.name for i in encoder.get_inputs()], [g.name for g in manifest.groups])
            need(_DECODER, "inputs", [i.name for i in decoder.get_inputs()], [*maps, "rows", "columns"])
            need(_DECODER, "outputs", [o.name for o in decoder.get_outputs()], list(manifest.tasks))
            sizes = {group.name: len(group.channels) for group in manifest.groups}
            for node in encoder.get_inputs():
                size = manifest.window.size_px
                problems += self._shape_problem(_ENCODER, node, (None, sizes.get(node.name), size, size))
        for task, forest in manifest.forests.items():
            if forest.file in self._sessions:
                session = self._sessions[forest.file]
                need(forest.file, "inputs", [i.name for i in session.get_inputs()], ["features"])
                need(forest.file, "outputs", [o.name for o in session.get_outputs()], ["probabilities"])
                for node in session.get_inputs():
                    problems += self._shape_problem(forest.file, node, (None, len(forest.features)))
            if task not in manifest.tasks:
                found = f'the forest\'s task "{task}" is not a task of the manifest.'
                problems.append(Problem(f'Model folder "{self.files.folder}"', found, "", _COPY_AGAIN))
        if problems:
            raise ModelFolderError.of(problems)

    def _shape_problem(self, file: str, node: Any, needed: Sequence[Optional[int]]) -> List[Problem]:  # noqa: ANN401
        shape = list(node.shape)
        fits = len(shape) == len(needed) and all(
            not isinstance(have, int) or want is None or have == want for have, want in zip(shape, needed)
        )
        if fits and node.type == "tensor(float)":
            return []
        name = f'Model file "{self.files.folder / file}"'
        found = f'input "{node.name}" has the shape {shape} and the type {node.type}.'
        wanted = f"The manifest needs {['N' if n is None else n for n in needed]} of tensor(float)."
        return [Problem(name, found, wanted, _COPY_AGAIN)]

    def _try_once(self) -> Dict[str, FloatArray]:
        """Run every graph once on made-up values, part of them missing; return the answers."""
        manifest = self.manifest
        answers: Dict[str, FloatArray] = {}
        size = manifest.window.size_px
        if _ENCODER in self._sessions:
            windows = []
            for channel in manifest.channels:
                low, high = channel.range or (0.0, 1.0)
                plane = np.linspace(low, high, size * size, dtype=np.float32).reshape(size, size)
                plane[: size // 8] = np.nan
                windows.append(plane)
            answers.update(self.predict(np.stack(windows)[None]))
        for task, forest in manifest.forests.items():
            if forest.file in self._sessions:
                answers[f"rf {task}"] = self.forest(task, np.zeros((2, len(forest.features)), np.float32))
        return answers

    def _run(self, file: str, feeds: Mapping[str, NDArray[Any]]) -> List[NDArray[Any]]:
        started = time.perf_counter()
        try:
            answers: List[NDArray[Any]] = self._sessions[file].run(None, dict(feeds))
        except Exception as error:  # reason: the runtime's errors share no base
            text = " ".join(str(error).split())[:400]
            memory = any(word in text.lower() for word in ("memory", "bad_alloc", "allocate"))
            remedy = "Close other programs, choose fewer threads or the CPU." if memory else "Report this message."
            raise RuntimeFailure(f'Model file "{file}"', f"onnxruntime failed ({text}).", "", remedy) from error
        with self._lock:
            self.session_s += time.perf_counter() - started
        return answers

    def predict(self, windows: FloatArray) -> Dict[str, FloatArray]:
        """Predict the decoded square of a batch of windows.

        Args:
            windows: (N, C, size, size) float32, channels in the manifest's order; NaN where missing.

        Returns:
            Task -> (N, K, decode, decode) float32 probabilities in [0, 1].

        Raises:
            RuntimeFailure: If the runtime fails or the model answers with something that is no probability.
        """
        spec = self.manifest.window
        feeds: Dict[str, NDArray[Any]] = {}
        start = 0
        for group in self.manifest.groups:
            stop = start + len(group.channels)
            feeds[group.name] = np.ascontiguousarray(windows[:, start:stop])
            start = stop
        encoder, decoder = self._sessions[_ENCODER], self._sessions[_DECODER]
        names = [output.name for output in encoder.get_outputs()]
        maps = dict(zip(names, self._run(_ENCODER, feeds)))
        tasks = [output.name for output in decoder.get_outputs()]
        margin = (spec.size_px - spec.decode_px) // 2
        centres = np.arange(margin, margin + spec.decode_px, dtype=np.float32) + np.float32(0.5)
        rows = _DECODE_ROWS if self.provider == "cpu" and self._on_cpu() else spec.decode_px
        parts: Dict[str, List[FloatArray]] = {task: [] for task in tasks}
        for first in range(0, spec.decode_px, rows):
            answer = self._run(_DECODER, {**maps, "rows": centres[first : first + rows], "columns": centres})
            for task, values in zip(tasks, answer):
                parts[task].append(values)
        result = {task: np.concatenate(values, axis=2) for task, values in parts.items()}
        for task, probabilities in result.items():
            classes = len(self.manifest.tasks[task].classes)
            self._check_answer(_DECODER, probabilities, (len(windows), classes, spec.decode_px, spec.decode_px))
        return result

    def _on_cpu(self) -> bool:
        return _CUDA not in self._sessions[_DECODER].get_providers()

    def forest(self, task: str, features: FloatArray) -> FloatArray:
        """Run the Random Forest of a task: (M, F) float32 -> (M, K) float32 probabilities.

        Raises:
            RuntimeFailure: As in :meth:`predict`.
        """
        file = self.manifest.forests[task].file
        (probabilities,) = self._run(file, {"features": np.ascontiguousarray(features, np.float32)})
        self._check_answer(file, probabilities, (len(features), len(self.manifest.tasks[task].classes)))
        result: FloatArray = probabilities
        return result

    def _check_answer(self, file: str, values: NDArray[Any], shape: Tuple[int, ...]) -> None:
        name = f'Model file "{self.files.folder / file}"'
        if values.shape != shape:
            raise ModelFolderError(
                name, f"it answers with the shape {values.shape}.", f"{shape} is needed.", _COPY_AGAIN
            )
        # NaN compares as false, so that it is caught as well; rounding may leave [0, 1] by a hair.
        if not (values.min(initial=0.0) >= -1e-4 and values.max(initial=1.0) <= 1.0 + 1e-4):
            found = f"it answers with values from {np.min(values):g} to {np.max(values):g}."
            raise RuntimeFailure(name, found, "Probabilities from 0 to 1 are needed.", "Export the model again.")
        np.clip(values, 0.0, 1.0, out=values)
        if shape[1] > 1 and values.size:
            worst = float(np.abs(values.sum(axis=1) - 1.0).max())
            if worst > _SUM_TOLERANCE:
                found = f"the probabilities of its {shape[1]} classes sum to 1 only within {worst:.2g}."
                raise RuntimeFailure(name, found, "Classes that exclude one another are needed.", "Export it again.")


def default_threads() -> int:
    """Return how many windows to compute side by side: the processors, at most four (each costs memory)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, available))


def load_model(folder: Path, provider: str = "auto", models: Sequence[str] = ("miso", "rf")) -> Model:
    """Check a model folder and make it ready to run.

    Raises:
        ModelFolderError, RuntimeFailure, InputError: As in :func:`read_model_files` and :class:`Model`.
    """
    return Model(read_model_files(folder, models), provider)
