"""Facts about a model: its fx graphs, its layers, its topology. Knows no recipe."""

from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.layers import Layer
from dcil_dsl.model.trace import Traced, TraceError, trace_model

__all__ = ["Inputs", "Layer", "TraceError", "Traced", "trace_model"]
