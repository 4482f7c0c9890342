"""The format `onnx-int8`: int8 weights and activations, with the zeros of the network kept.

In:   a Deployed network that came from a run folder.
Out:  a .onnx file of QuantizeLinear and DequantizeLinear pairs; its accuracy next to float32's.
Not:  nothing is trained: the ranges of the activations are those that the run's data have.

Weights are symmetric, one scale for each output channel: the code of 0 is 0.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.extras.formats.calibrate import Run, open_run_data, report_int8, run_of
from dcil_dsl.extras.formats.graph import compare, fact_of, flat, quiet
from dcil_dsl.extras.formats.onnx_file import (
    Onnx,
    Places,
    build_onnx,
    in_runtime,
    named_weights,
    save_onnx,
    to_tensor,
)


class OnnxInt8(Onnx):
    """A .onnx file."""

    def write(self, deployed: Deployed, place: Path) -> str:
        model, places, report = build_int8(deployed, place)
        save_onnx(model, places, deployed, place)
        return report

    def recognises(self, place: Path) -> bool:
        return False  # `onnx` reads these files too


Engine = Callable[[Any], Run]  # takes a ModelProto


def build_int8(
    deployed: Deployed, place: Path, engine: Engine = in_runtime
) -> tuple[Any, Places, str]:
    """The quantised ModelProto, where its weights lie, and what is printed of it.

    engine  in which the accuracy is measured
    """
    import onnxruntime.quantization  # noqa: F401  before anything takes its time

    run_of(deployed)
    dense, places, inputs, is_free = build_onnx(deployed)
    fixed = None if is_free else inputs.batch_size()
    data = open_run_data(deployed, fixed)
    try:
        model = quantise(dense, [flat(batch) for batch in data.calibration()])
        codes = coded_places(model, places)
        num_codes = sum(where.endswith("_quantized") for where, _ in codes.values())
        if not num_codes:
            raise InputError(f"ONNX Runtime quantises no weight of {deployed.source}")
        _check_zeros(dense, places, model, codes, place)
        exact, coded = engine(dense), engine(model)
        batches = compare(deployed, inputs, exact, is_free).batches
        report = report_int8(deployed, inputs, data, exact, coded, is_free)
    finally:
        data.close()
    stored = f"{num_codes} of {count(len(codes), 'weight')} in int8; batch size: {batches}"
    return model, codes, "\n".join([stored, *report])


def coded_places(model: Any, places: Places) -> Places:
    """Where the weights lie in the quantised model."""
    names = {entry.name for entry in model.graph.initializer}
    return {
        name: (f"{where}_quantized" if f"{where}_quantized" in names else where, is_turned)
        for name, (where, is_turned) in places.items()
    }


def quantise(dense: Any, batches: list[list[Any]]) -> Any:
    """The ModelProto in int8, its activations in the ranges that these batches have.

    Where an activation has numbers that leave no step of int8 for the others, as the scores behind
    the mask of an attention, the operations on it stay in float32.
    """
    model = _quantise(dense, batches, [])
    wide = _wide_ranges(model)
    if not wide:
        return model
    left = [
        node.name
        for node in dense.graph.node
        if _is_weightless(node, dense) and (wide & {*node.input, *node.output})
    ]
    model = _quantise(dense, batches, left)
    for name in _wide_ranges(model):
        scale = next(e for e in model.graph.initializer if e.name == f"{name}_scale")
        if not np.isfinite(to_tensor(scale)).all():
            raise InputError(f"the values of `{name}` in the network are not finite")
    return model


MOST_RANGE = 1000.0  # of an activation; int8 has 256 steps for it
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _wide_ranges(model: Any) -> set[str]:
    """The tensors whose range is wider than MOST_RANGE, or not finite."""
    return {
        entry.name.removesuffix("_scale")
        for entry in model.graph.initializer
        if entry.name.endswith("_scale")
        and not bool((to_tensor(entry).abs() * 255 <= MOST_RANGE).all())
    }


def _is_weightless(node: Any, model: Any) -> bool:
    stored = {entry.name for entry in model.graph.initializer}
    return node.op_type not in WEIGHTED or stored.isdisjoint(node.input)


def _quantise(dense: Any, batches: list[list[Any]], left_out: list[str]) -> Any:
    """left_out  names of the nodes that stay in float32"""
    import onnx
    from onnxruntime import quantization as q

    names = [one.name for one in dense.graph.input]

    class CalibrationBatches(q.CalibrationDataReader):  # type: ignore[misc]
        """One pass over the batches."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            if batch is None:
                return None
            return {name: x.numpy() for name, x in zip(names, batch, strict=True)}

    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            target = Path(folder) / "int8.onnx"
            q.quantize_static(
                onnx.shape_inference.infer_shapes(dense),
                target,
                CalibrationBatches(),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                weight_type=q.QuantType.QInt8,
                activation_type=q.QuantType.QInt8,
                nodes_to_exclude=left_out,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            return onnx.load(target)
    except InputError:
        raise
    except Exception as error:  # of many types
        raise InputError(f"ONNX Runtime cannot quantise the network: {fact_of(error)}") from None


def _check_zeros(dense: Any, places: Places, model: Any, codes: Places, place: Path) -> None:
    """InputError where a zero of the network is not the code of 0."""
    before, after = named_weights(dense, places, place), named_weights(model, codes, place)
    for name in places:
        revived = int(((before[name] == 0) & (after[name] != 0)).sum())
        if revived:
            raise InputError(f"{count(revived, 'zero')} of `{name}` would not be zero in int8")
