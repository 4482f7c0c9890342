"""Check recipe files one after the other: a wrong one does not hide the others.

In:   RecipeFile values, the overrides of `--set`, perhaps a model.
Out:  a Checked value for each file, as soon as it is known.
Not:  nothing is printed. torch is loaded only for a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dcil_dsl.diagnostics import Diagnostic, InputError, RecipeError
from dcil_dsl.jobs.recipe_files import RecipeFile


@dataclass
class Checked:
    """What is known about one file.

    failed  why it could not be checked: the file, the model or the data are wrong
    pruned  layers with a rule that prunes them, and all layers; None without a model
    """

    file: RecipeFile
    diagnostics: list[Diagnostic] = field(default_factory=list)
    failed: InputError | None = None
    notes: list[str] = field(default_factory=list)
    pruned: tuple[int, int] | None = None

    @property
    def is_sound(self) -> bool:
        return self.failed is None and not any(one.is_error for one in self.diagnostics)


def check_files(
    files: Sequence[RecipeFile],
    overrides: Mapping[str, str],
    model: str | None = None,
    steps_per_epoch: int | None = None,
) -> Iterator[Checked]:
    """Check each file alone or for the model of a SPEC."""
    for file in files:
        checked = Checked(file)
        try:
            _check(checked, overrides, model, steps_per_epoch)
        except RecipeError as error:
            checked.diagnostics += error.diagnostics
        except InputError as error:
            checked.failed = error
        yield checked


def _check(
    checked: Checked, overrides: Mapping[str, str], model: str | None, steps_per_epoch: int | None
) -> None:
    from dcil_dsl.lang import loads
    from dcil_dsl.lang.tokens import decode

    file = checked.file
    text = decode(file.read(), file.name)
    recipe = loads(text, file.name, dict(overrides) or None, file.folder)
    checked.diagnostics += recipe.warnings
    if model is None:
        return
    from dcil_dsl.jobs.prepare import prepare
    from dcil_dsl.jobs.teachers import names_all

    plan = prepare(
        recipe,
        model,
        warn=checked.diagnostics.append,
        note=checked.notes.append,
        steps_per_epoch=steps_per_epoch,
        teachers={} if names_all(recipe) else None,
    ).plan
    pruned = sum(len(group.parameters) for group in plan.groups)
    checked.pruned = pruned, len(plan.layers)
