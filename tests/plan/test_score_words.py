"""What a printed plan says of scores and of budgets by shape."""

import pytest
from support.resolving import plan_of

from dcil_dsl.plan.show import show_plan
from dcil_dsl.words.scores import L2, Magnitude, Movement, Random, Taylor


@pytest.mark.parametrize(
    "score, words",
    [
        (Magnitude(), "magnitude"),
        (L2(average=0.9), "l2, averaged with 0.9 over the steps"),
        (
            Taylor(path="sparse"),
            "taylor (|w * gradient| of path sparse), summed over the steps",
        ),
        (
            Movement(path="dense", average=0.5),
            "movement (-w * gradient of path dense), averaged with 0.5 over the steps",
        ),
        (Random(), "random"),
        (Random(redraw=True), "random, drawn anew for every mask"),
    ],
)
def test_a_score_is_reported_in_words(score, words):
    assert score.summary() == words


def test_each_layer_of_erk_is_reported_its_own_share():
    text = show_plan(plan_of("prune Conv2d to erk(80%)"))
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if "Conv2d" in line}
    shares = {round(float(row.rstrip("%"))) for row in rows.values()}
    assert len(rows) == 7 and len(shares) == 4  # as many as there are shapes
    assert "80% of 2,088 weights in 7 layers, one budget each by ERK" in text
