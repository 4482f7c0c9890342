"""The structures that the kernels read, field by field as in kernels.c."""

from __future__ import annotations

import ctypes
from enum import IntEnum

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p


class StructKind(IntEnum):
    """What an operation on planes does."""

    CONV = 0
    DEPTHWISE = 1
    POOL = 2
    COPY = 3
    CODE = 4


ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "gelu": 3}


def _fields(words: str) -> list[tuple[str, type]]:
    """A name with * is a pointer, any other a 64-bit integer."""
    return [
        (word.removeprefix("*"), _POINTER if word.startswith("*") else _INTEGER)
        for word in words.split()
    ]


class Op(ctypes.Structure):
    """One operation on planes."""

    _fields_ = _fields(
        "kind *input *output *add in_image in_worker out_image out_worker add_image add_worker "
        "in_plane out_plane add_plane channels vectors act *values *short_values *offsets *starts "
        "*bias *mask width taps height columns in_row in_step out_row in_height in_columns kernel "
        "stride padding *code *code_values blocks block parts"
    )


class RowStruct(ctypes.Structure):
    """A linear layer whose input rows are positions."""

    _fields_ = _fields(
        "*values *short_values *offsets *short_offsets *starts *bias scale inner outer act width "
        "*code *code_values blocks block parts"
    )


class Slices(ctypes.Structure):
    """A linear layer of one row."""

    _fields_ = _fields(
        "*values *short_values *columns *short_columns *starts *order *bias inner outer slices act "
        "gathers"
    )


class Attention(ctypes.Structure):
    """The sizes of an attention, and the strides of its tensors in floats."""

    _fields_ = _fields(
        "batch heads queries keys inner outer q_image q_head q_row k_image k_head k_row v_image "
        "v_head v_row out_image out_head out_row mask_image mask_head mask_key"
    )
