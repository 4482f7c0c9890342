"""The errors of model.md are those of the program, against a model of six layers."""

from __future__ import annotations

import pytest
import torch
from support.literate import cases, told
from support.sound import completed
from torch import nn

from dcil_dsl.diagnostics import Diagnostics, RecipeError
from dcil_dsl.diagnostics.render import render
from dcil_dsl.jobs.teachers import open_teachers
from dcil_dsl.lang import loads
from dcil_dsl.model.trace import trace_model
from dcil_dsl.plan.resolve import resolve_recipe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 10)
        self.pair = nn.utils.parametrizations.weight_norm(nn.Bilinear(8, 8, 8))

    def forward(self, x):
        x = self.act(self.body(self.norm(self.stem(x))))
        x = x.mean((2, 3))
        return self.head(self.pair(x, x))


def found_in(text: str):
    report, recipe = Diagnostics(), loads(text)
    size = recipe.data.image_size
    example = None if size is None else (torch.zeros(1, 3, size, size),)
    try:
        plan = resolve_recipe(recipe, trace_model(Net(), example), 10, report)
        open_teachers(recipe, plan, Net(), None)
    except RecipeError as error:
        return error.diagnostics
    return report.warnings


@pytest.mark.parametrize("statements, drawing", [*cases("model.md")])
def test_a_page_of_errors_against_a_model_tells_the_truth(statements, drawing):
    text = completed(statements, whole=True)
    found = found_in(text)
    assert sorted((d.span.line, d.code) for d in found) == told(text)
    assert all(render(d).startswith(f"<recipe>:{d.span.line}:") for d in found)
    if drawing is not None:
        assert "\n".join(render(d) for d in found) + "\n" == drawing
