"""Write the layers of a model as JSON: the program of the server's child process.

    python -m dcil_dsl.extras.lsp.layer_table '{"specs": [...], "classes": 10, ...}' FILE

In:   specs to try in turn, the number of classes, the options of the builder, the size of images.
Out:  the file: layers with their types, attributes and weights, or the reason why there are none.
Not:  nothing is pruned, trained or downloaded. Importing this module loads torch, so the server
      does not.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.lsp.table import FORMAT
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.layers import Layer
from dcil_dsl.model.trace import TraceError, trace_model
from dcil_dsl.zoo import build_model, example_inputs
from dcil_dsl.zoo.example import takes_keywords, takes_one_image

PLAIN = (bool, int, float, str, type(None))
LONGEST = 200  # characters of an attribute that is shown


def main(asked: str, file: str) -> None:
    """Write the table, or why there is none; the file appears whole or not at all."""
    wanted = json.loads(asked)
    try:
        table = layer_table(wanted)
    except (InputError, TraceError) as error:
        table = {"failed": getattr(error, "message", None) or str(error)}
    except Exception as error:  # a library may fail in any way
        table = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"}
    draft = Path(f"{file}.{os.getpid()}")
    draft.write_text(json.dumps({"format": FORMAT, **table}), encoding="utf-8")
    os.replace(draft, file)


def layer_table(wanted: dict[str, Any]) -> dict[str, Any]:
    """The table of the first spec that names a model."""
    failed: InputError | None = None
    for spec in wanted["specs"]:
        try:
            model = build_model(spec, wanted["classes"], wanted["options"])
        except InputError as error:
            failed = failed or error
            continue
        if takes_one_image(model) and not takes_keywords(model):
            side = wanted["image_size"]
            inputs = Inputs((torch.zeros(1, wanted["channels"], side, side),))
        else:
            inputs = example_inputs(model, batch=1)
        traced = trace_model(model, inputs)
        layers = [_layer(layer) for layer in traced.layers]
        return {"spec": spec, "name": traced.name, "layers": layers}
    assert failed is not None
    raise failed


def _layer(layer: Layer) -> dict[str, Any]:
    module = layer.module
    own = {name: _plain(value) for name, value in vars(module).items() if name[0] != "_"}
    of_class = {
        name: _plain(getattr(module, name))
        for name in dir(type(module))
        if name[0] != "_" and isinstance(getattr(type(module), name, None), (*PLAIN, tuple))
    }
    held = {**module._parameters, **module._buffers}
    of_class |= {name: _plain(value) for name, value in held.items()}
    return {
        "path": layer.path,
        "types": list(layer.types),
        "weights": [
            {"name": one.name, "shape": list(one.shape), "macs": one.macs} for one in layer.prunable
        ],
        "no_mask": layer.no_mask,
        "attributes": own,
        "class": of_class,
        "has_parameters": bool(module._parameters),
    }


def _plain(value: object) -> object:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    kind = "Tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    shown = kind if isinstance(value, (torch.Tensor, nn.Module)) else repr(value)[:LONGEST]
    return {"type": kind, "repr": shown}


if __name__ == "__main__":
    main(*sys.argv[1:])
