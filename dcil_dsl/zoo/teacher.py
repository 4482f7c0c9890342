"""Build the network of a teacher: `network("torchvision:resnet50", weights="big.pth")`.

In:   the word, and the folder to which its paths are relative.
Out:  the network with its weights, which has as many classes as they have; notes.
Not:  no tensor of it is random: where one does not fit, an InputError says so.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.words.views import TrainedNetwork
from dcil_dsl.zoo.pretrained import own_weights
from dcil_dsl.zoo.spec import build_model
from dcil_dsl.zoo.weights import SUFFIXES, OtherHead, load_weights

GUESS = 1000  # classes, before the weights say how many


def build_network(word: TrainedNetwork, folder: Path) -> tuple[nn.Module, list[str]]:
    """The network and notes on its weights. InputError if there is no such network, or they do
    not fit. The caller's random numbers do not advance."""
    assert word.source is not None
    spec = _spec(word.source, folder)
    weights = own_weights(spec) if word.weights is None else _weights(word.weights, folder)
    if weights is None:
        raise InputError(
            f"`{word.source}` has no weights of its own", help='give them: `weights="FILE"`'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = _options(word.options) if word.options else _options_of_run(spec, weights)
        network = build_model(spec, None if spec.startswith("hf:") else GUESS, options)
        try:
            notes = load_weights(network, weights, spec, new_head=False)
        except OtherHead as other:
            network = build_model(spec, other.classes, options)
            notes = load_weights(network, weights, spec, new_head=False)
    return network.float(), notes


def _spec(source: str, folder: Path) -> str:
    """The source; a folder of hf: relative to that of the recipe."""
    library, _, name = source.partition(":")
    if library == "hf" and (folder / Path(name).expanduser()).is_dir():
        return f"hf:{folder / Path(name).expanduser()}"
    return source


def _weights(weights: str, folder: Path) -> str:
    """A path, or the name that a library has for weights."""
    path = folder / Path(weights).expanduser()
    is_path = path.exists() or "/" in weights or weights.endswith(SUFFIXES)
    return str(path) if is_path else weights


def _options(text: str) -> dict[str, Any]:
    """Keywords as a call in Python has them; InputError for all but literals."""
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        found = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
        assert len(found) == len(call.keywords)  # no `**`, and none twice
        return found
    except (AssertionError, SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"`options={text!r}` is no list of keywords",
            help='as in a call in Python: `options="img_size=32, in_chans=1"`',
        ) from None


def _options_of_run(spec: str, weights: str) -> dict[str, Any]:
    """What the network of a run was built with, where `weights` is its folder."""
    try:
        plan = Plan.from_json((Path(weights) / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(plan.model.options) if plan.model.name == spec else {}
