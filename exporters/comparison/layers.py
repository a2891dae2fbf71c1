"""Where two artifacts part: the outputs of their modules side by side, in the order of the network.

Modules are told by the names that the exporter gives nodes, which stay when a graph is lowered: Q/DQ and casts come between
them. Each side's graph runs in its own runtime, on its own preprocessed images, through Polygraphy's runners, whose files
`save_inputs` and `save_outputs` write: `polygraphy run` and `polygraphy debug` take over from there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from exporters.comparison.report import Side
from yolact_deploy.arrays import AnyArray, FloatArray
from yolact_deploy.artifacts.names import END_TO_END, INPUT, OUTPUTS, StepProgress, module_of
from yolact_deploy.artifacts.onnx_file import OnnxFile, no_stages
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import ArtifactError, ImageError, SpecError
from yolact_deploy.files import write_text
from yolact_deploy.optional import require
from yolact_deploy.reference.images import preprocess, read_image

MAX_IMAGES = 4  # that are looked at: the tensors of all modules of one image take hundreds of megabytes
PARTS_AT = 0.01  # relative L2 from which a module is said to have parted
# What computes; ReLU and what only moves values say nothing that these have not said. After convolutions of any kind.
_CONVOLUTIONS = ("Conv", "DeformConv")
_COMPARED = (*_CONVOLUTIONS, "Add", "MatMul", "MaxPool", "Resize")


@dataclass(frozen=True)
class ModuleDifference:
    """What a module gives on each side, over all images."""

    node: str  # by which both sides know it; the name of an output
    module: str
    operator: str  # "" for an output
    max_abs_error: float
    relative_l2: float  # |A - B| / |A|
    input_relative_l2: float  # the largest of the modules that it is computed of; 0 where none is
    range_a: tuple[float, float]
    range_b: tuple[float, float]
    max_abs_weight: float | None  # of A; None for what is no convolution, and where weights are not in floating point

    @property
    def growth(self) -> float:
        """What the module adds to the error of its inputs; NaN where an error is no number."""
        return self.relative_l2 - self.input_relative_l2


@dataclass(frozen=True)
class LayerComparison:
    """Modules in the order of A's graph, the outputs last."""

    parts_at: float  # relative L2 from which a module has parted
    images: tuple[str, ...]  # that were looked at
    modules: tuple[ModuleDifference, ...]
    first_parted: str | None  # node; None: none has
    first_convolution: str | None  # node: the one that parted first, or the nearest before it
    notes: tuple[str, ...]

    @property
    def most_grown(self) -> ModuleDifference:
        """The module that adds most to the error of its inputs; the first whose error is no number, if there is one."""
        broken = next((module for module in self.modules if not math.isfinite(module.relative_l2)), None)
        return max(self.modules, key=lambda module: module.growth) if broken is None else broken

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; figures may not be finite."""
        return {
            "parts_at": self.parts_at,
            "images": list(self.images),
            "modules": [
                {
                    **dataclasses.asdict(module),
                    "range_a": list(module.range_a),
                    "range_b": list(module.range_b),
                    "growth": module.growth,
                }
                for module in self.modules
            ],
            "first_parted": self.first_parted,
            "first_convolution": self.first_convolution,
            "most_grown": self.most_grown.node,
            "notes": list(self.notes),
        }


def compare_layers(
    a: Side,
    b: Side,
    images: Sequence[Path],
    *,
    max_pixels: int,
    save_inputs: Path | None = None,
    save_outputs: Path | None = None,
    progress: StepProgress | None = None,
) -> LayerComparison:
    """The outputs of all modules that both have, on the first MAX_IMAGES images that can be read.

    `save_inputs` and `save_outputs` are Polygraphy's JSON files to write, of A and the first image. Raises MissingDependencyError
    without Polygraphy, ArtifactError for a checkpoint, SpecError for two architectures or where no module is common, ImageError,
    DeviceError and EngineError for what can't be run, OutputError.
    """
    require("polygraphy", extra="compare", purpose="comparing layers")
    _check_architectures(a, b)
    graphs = (_Graph.of(a, 0), _Graph.of(b, 1))
    rows = _common(graphs, (a, b))
    found = {row.name: _Sums() for row in rows}
    seen: list[str] = []
    with ExitStack() as stack:
        runs = [stack.enter_context(graph.running(rows)) for graph in graphs]
        for path in images:
            if progress is not None:
                progress(len(seen), min(MAX_IMAGES, len(images)))
            try:
                image = read_image(path, max_pixels=max_pixels)
            except ImageError:  # named by the comparison itself
                continue
            feeds = [graph.feed(preprocess([image], side.spec)) for graph, side in zip(graphs, (a, b), strict=True)]
            outputs = [run(feed) for run, feed in zip(runs, feeds, strict=True)]
            if not seen:
                _save(feeds[0], outputs[0], save_inputs, save_outputs)
            for row in rows:
                first, second = (each[tensor] for each, tensor in zip(outputs, row.tensors, strict=True))
                _check_shapes(row.name, first, second, a, b)
                found[row.name].add(first, second)
            seen.append(str(path))
            if len(seen) == MAX_IMAGES:
                break
    if not seen:
        raise ImageError(f"none of the {len(images)} images can be read, so that no layers can be compared.")
    return _result(rows, found, graphs[0], seen, _notes(graphs, len(images)))


@dataclass(frozen=True)
class _Row:
    """A tensor that both sides have: of a node of the same name, or an output of the same name."""

    name: str  # of the node, or of the output
    module: str
    operator: str  # "" for an output
    tensors: tuple[str, str]  # in A and in B
    inputs: tuple[str, ...]  # names of the rows that it is computed of


class _Graph:
    """One side's nodes that can be compared, and how they are run."""

    def __init__(
        self,
        side: Side,
        index: int,  # 0 for A, 1 for B
        run: Callable[[Sequence[str]], Any],
        model: onnx.ModelProto | None,  # None: a plan
    ) -> None:
        self.path, self._index, self.is_plan = side.info.path, index, model is None
        self._run = run
        nodes = [] if model is None else [node for node in model.graph.node if node.name and node.output]
        self.nodes = {node.name: node for node in nodes}
        weights = {} if model is None else {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in nodes for name in node.output}
        self._weights: Mapping[str, onnx.TensorProto] = weights
        element = None if model is None else model.graph.input[0].type.tensor_type.elem_type
        self._half = element == onnx.TensorProto.FLOAT16

    @staticmethod
    def of(side: Side, index: int) -> _Graph:
        from exporters.comparison import runners

        file = side.file
        if isinstance(file, PlanFile):
            return _Graph(side, index, lambda _: runners.tensorrt_runner(file), None)
        if not isinstance(file, OnnxFile):
            raise ArtifactError(
                f"{side.info.path} is a checkpoint, which has no graph whose layers could be compared. Export it first: "
                f"yolact-deploy export {side.info.path} -o {Path(side.info.path).stem}.onnx"
            )
        if file.form == END_TO_END:
            raise no_stages(file.path)
        model = onnx.load(str(file.path))
        if side.runs_in_openvino:
            options: dict[str, Any] = {
                "name": str(file.path),
                "precision": side.cpu_precision,
                "device": side.device,
            }
            return _Graph(side, index, lambda names: runners.openvino_runner(model, names, **options), model)
        return _Graph(side, index, lambda names: runners.onnxruntime_runner(model, names, side.device), model)

    def running(self, rows: Sequence[_Row]) -> Any:
        """While the block lasts, a function from a feed to the rows' tensors by name."""
        from exporters.comparison.runners import running

        return running(self._run(list(dict.fromkeys(row.tensors[self._index] for row in rows))), self.path)

    def feed(self, batch: FloatArray) -> dict[str, AnyArray]:
        return {INPUT: batch.astype(np.float16) if self._half else batch}

    def weight_range(self, node_name: str) -> float | None:
        """The largest magnitude of a convolution's weights; None where they are not float in the file."""
        node = self.nodes.get(node_name)
        tensor = None if node is None or len(node.input) < 2 else self._weights.get(node.input[1])
        if tensor is None or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            return None
        return float(np.abs(numpy_helper.to_array(tensor).astype(np.float32)).max(initial=0.0))

    def compared_inputs(self, tensors: Sequence[str], names: set[str]) -> tuple[str, ...]:
        """The nearest nodes among `names` that tensors are computed of."""
        found, waiting, visited = dict[str, None](), list(tensors), set[str]()
        while waiting:
            maker = self._makers.get(waiting.pop())
            if maker is None or maker.name in visited:
                continue
            visited.add(maker.name)
            if maker.name in names:
                found[maker.name] = None
            else:
                waiting.extend(maker.input)
        return tuple(found)


class _Sums:
    """Sums over the images of one tensor; nothing of it is kept."""

    def __init__(self) -> None:
        self.max_abs_error = self.squared_error = self.squared = 0.0
        self.ranges = [[math.inf, -math.inf], [math.inf, -math.inf]]

    def add(self, first: AnyArray, second: AnyArray) -> None:
        flat = [values.ravel().astype(np.float64) for values in (first, second)]
        difference = flat[0] - flat[1]
        self.max_abs_error = max(self.max_abs_error, float(np.abs(difference).max(initial=0.0)), key=_nan_first)
        self.squared_error += float(difference @ difference)
        self.squared += float(flat[0] @ flat[0])
        for limits, values in zip(self.ranges, flat, strict=True):
            limits[:] = min(limits[0], float(values.min())), max(limits[1], float(values.max()))

    @property
    def relative_l2(self) -> float:
        if not self.squared:
            return 0.0 if not self.squared_error else math.inf
        return math.sqrt(self.squared_error / self.squared)


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _check_shapes(name: str, first: AnyArray, second: AnyArray, a: Side, b: Side) -> None:
    if first.shape != second.shape:
        raise SpecError(
            f"{a.info.path} and {b.info.path} can't be compared by layers: {name} gives {list(first.shape)} in the first and "
            f"{list(second.shape)} in the second, so they are two architectures."
        )


def _check_architectures(a: Side, b: Side) -> None:
    """Raise SpecError where the specs tell that the modules can't be the same."""
    for part in ("backbone", "fpn", "protonet", "head"):
        first, second = getattr(a.spec, part), getattr(b.spec, part)
        for field in dataclasses.fields(first):
            values = getattr(first, field.name), getattr(second, field.name)
            if values[0] != values[1]:
                raise SpecError(
                    f"{a.info.path} and {b.info.path} can't be compared by layers: {part}.{field.name} is {values[0]} in the "
                    f"first and {values[1]} in the second, so their modules are not the same. Leave --layers out."
                )


def _common(graphs: tuple[_Graph, _Graph], sides: tuple[Side, Side]) -> list[_Row]:
    first, second = graphs
    names = [
        name
        for name, node in first.nodes.items()
        if node.op_type in _COMPARED and name in second.nodes and second.nodes[name].op_type in _COMPARED
    ]
    if not names and not (first.is_plan or second.is_plan):
        raise SpecError(
            f"{first.path} and {second.path} have no module in common: the names of their nodes are not those of one exporter. "
            "Export both with `yolact-deploy export`, and lower them with `yolact-deploy quantize`."
        )
    known = set(names)
    rows = [
        _Row(
            name,
            module_of(name),
            first.nodes[name].op_type,
            (first.nodes[name].output[0], second.nodes[name].output[0]),
            first.compared_inputs(first.nodes[name].input, known),
        )
        for name in names
    ]
    made = {tensor for row in rows for tensor in row.tensors}
    heads = [name for name in OUTPUTS if name not in made]
    return [*rows, *(_Row(name, name, "", (name, name), first.compared_inputs([name], known)) for name in heads)]


def _notes(graphs: tuple[_Graph, _Graph], images: int) -> tuple[str, ...]:
    notes = []
    if images > MAX_IMAGES:
        notes.append(f"layers are compared on the first {MAX_IMAGES} images.")
    for graph in graphs:
        if graph.is_plan:
            notes.append(
                f"{graph.path} is a plan, which gives nothing but its outputs: compare the ONNX that it was built from."
            )
    first, second = ({name for name, node in graph.nodes.items() if node.op_type in _CONVOLUTIONS} for graph in graphs)
    for letter, alone in (("A", first - second), ("B", second - first)):
        if alone and not any(graph.is_plan for graph in graphs):
            notes.append(f"{len(alone)} convolutions are in {letter} only, the first {min(alone)}.")
    return tuple(notes)


def _result(
    rows: Sequence[_Row], found: Mapping[str, _Sums], graph: _Graph, images: Sequence[str], notes: tuple[str, ...]
) -> LayerComparison:
    errors = {name: sums.relative_l2 for name, sums in found.items()}
    modules = tuple(
        ModuleDifference(
            node=row.name,
            module=row.module,
            operator=row.operator,
            max_abs_error=found[row.name].max_abs_error,
            relative_l2=errors[row.name],
            input_relative_l2=max((errors[name] for name in row.inputs), default=0.0),
            range_a=(found[row.name].ranges[0][0], found[row.name].ranges[0][1]),
            range_b=(found[row.name].ranges[1][0], found[row.name].ranges[1][1]),
            max_abs_weight=graph.weight_range(row.name) if row.operator in _CONVOLUTIONS else None,
        )
        for row in rows
    )
    parted = next((row for row in modules if not row.relative_l2 < PARTS_AT), None)
    return LayerComparison(
        PARTS_AT,
        tuple(images),
        modules,
        None if parted is None else parted.node,
        None if parted is None else _convolution(parted.node, rows),
        notes,
    )


def _convolution(node: str, rows: Sequence[_Row]) -> str | None:
    """The node itself, or the nearest convolution before it."""
    known, waiting = {row.name: row for row in rows}, [node]
    while waiting:
        row = known[waiting.pop(0)]
        if row.operator in _CONVOLUTIONS:
            return row.name
        waiting.extend(row.inputs)
    return None


def _save(
    feed: Mapping[str, AnyArray],
    outputs: Mapping[str, AnyArray],
    save_inputs: Path | None,
    save_outputs: Path | None,
) -> None:
    """What Polygraphy takes for the truth: A's alone, as it compares all runs in a file with one another."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import to_json

    if save_inputs is not None:
        write_text(save_inputs, to_json([dict(feed)]))
    if save_outputs is not None:
        results = RunResults()
        results.append(("A", [IterationResult(dict(outputs), runner_name="A")]))
        write_text(save_outputs, to_json(results))
