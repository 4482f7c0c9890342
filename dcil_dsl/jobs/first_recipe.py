"""Write a commented recipe for a model: what `dcil init` does.

In:   a SPEC.
Out:  the canonical text of a recipe that `dcil check` calls sound for this model.
Not:  no question is asked, and no hyperparameter is tuned: the values are common starting points.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.jobs.prepare import ASSUMED_STEPS, Note, Prepared, Warn, prepare
from dcil_dsl.lang import loads
from dcil_dsl.lang.fmt import format_text
from dcil_dsl.lang.statements import CLAUSES, STATEMENTS
from dcil_dsl.zoo import build_model
from dcil_dsl.zoo.example import takes_keywords, takes_one_image

# Types that a recipe usually prunes: not embeddings, whose rows are looked up one by one.
PRUNED = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "Conv1D", "MultiheadAttention")
NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
LEAST_SHARE = 0.1  # of all weights that could be pruned, for a type to be named
FEW = 4  # layers of a type, below which none is kept dense

TEMPLATE = Path(__file__).with_name("first_recipe.txt")
KEEPS = "# These stay dense: they have few weights, and accuracy depends on them.\n"


@dataclass(frozen=True)
class Written:
    """The text, and the recipe resolved for its model."""

    text: str
    prepared: Prepared


def write_recipe(spec: str, file: str, warn: Warn, note: Note) -> Written:
    """A recipe for the model of `spec`, proved by resolving it.

    file  its name, for the comments. InputError where the model has nothing to prune, or cannot be
    built or traced.
    """
    if '"' in spec or not spec.isprintable():
        raise InputError(f"a recipe cannot name the model {ascii(spec)}", help="rename the file")
    model = build_model(spec)
    text = format_text(_text(model, spec, file), file)
    # The length of an epoch changes no line of the text.
    recipe = loads(text, file)
    prepared = prepare(recipe, spec, warn=warn, note=note, steps_per_epoch=ASSUMED_STEPS)
    return Written(text, prepared)


def name_of(spec: str) -> str:
    """The name of a recipe for a model: `resnet18` for torchvision:resnet18."""
    last = Path(spec.rpartition(":")[2]).name
    name = re.sub(r"[^a-z0-9_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower())
    name = name.strip("_")
    if name in STATEMENTS or name in CLAUSES:
        return f"{name}_"
    return name if re.match("[a-z_]", name) else f"recipe_{name}".rstrip("_")


def _text(model: nn.Module, spec: str, file: str) -> str:
    weights, layers = Counter[str](), Counter[str]()
    for module in model.modules():
        kind = type(module).__name__
        own = sum(p.numel() for p in module._parameters.values() if p is not None and p.dim() > 1)
        if own and kind in PRUNED:
            weights[kind] += own
            layers[kind] += 1
    if not weights:
        raise InputError(
            f"{spec} has no layer of a type that is usually pruned: {', '.join(PRUNED)}",
            help='a recipe names other layers by their class or name: `prune "encoder.**" to 80%`',
        )
    total = sum(weights.values())
    types = [kind for kind in weights if weights[kind] >= LEAST_SHARE * total]
    convolutions = [kind for kind in types if kind.startswith("Conv") and layers[kind] >= FEW]
    keeps = [f"keep first {kind}\n" for kind in convolutions[:1] if kind != "Conv1D"]
    keeps += ["keep last Linear\n"] if "Linear" in types and layers["Linear"] >= FEW else []
    kinds = {type(module).__name__ for module in model.modules()}
    norms = [kind for kind in NORMS if kind in kinds]
    private = f"\n  # Each path has its own statistics.\n  private {', '.join(norms)}\n"
    is_images = takes_one_image(model) and not takes_keywords(model)
    sgd = "sgd(lr=0.01, momentum=0.9, weight_decay=5e-4)"
    return TEMPLATE.read_text(encoding="utf-8").format(
        spec=spec,
        file=file,
        name=name_of(spec),
        types=", ".join(types),
        keeps="\n" + KEEPS + "".join(keeps) if keeps else "",
        private=private if norms else "",
        loss="cross_entropy" if is_images else "model",
        optimizer=sgd if norms else "adamw(lr=1e-4, weight_decay=0.01)",
    )
