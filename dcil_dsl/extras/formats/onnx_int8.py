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


# A network with one of these has activations of which few are large, and scores behind masks of
# -inf: eight bits for the range of all leave too few steps for the others.
WIDE = ("Softmax", "LayerNormalization")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


def quantise(dense: Any, batches: list[list[Any]]) -> Any:
    """The ModelProto in int8, its activations in the ranges that these batches have.

    Of a network with attention or layer norms only WEIGHTED are quantised.
    """
    import onnx
    from onnxruntime import quantization as q

    is_wide = any(node.op_type in WIDE for node in dense.graph.node)
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
                op_types_to_quantize=list(WEIGHTED) if is_wide else None,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            model = onnx.load(target)
    except InputError:
        raise
    except Exception as error:  # of many types
        raise InputError(f"ONNX Runtime cannot quantise the network: {fact_of(error)}") from None
    refuse_endless(model)
    return model


def refuse_endless(model: Any) -> None:
    """InputError where a range is not finite: every number in it would have the same code."""
    for entry in model.graph.initializer:
        if entry.name.endswith("_scale") and not bool(to_tensor(entry).isfinite().all()):
            name = entry.name.removesuffix("_scale")
            raise InputError(f"the values of `{name}` in the network are not finite")


def _check_zeros(dense: Any, places: Places, model: Any, codes: Places, place: Path) -> None:
    """InputError where a zero of the network is not the code of 0."""
    before, after = named_weights(dense, places, place), named_weights(model, codes, place)
    for name in places:
        revived = int(((before[name] == 0) & (after[name] != 0)).sum())
        if revived:
            raise InputError(f"{count(revived, 'zero')} of `{name}` would not be zero in int8")
