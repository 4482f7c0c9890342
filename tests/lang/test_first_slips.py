"""The first slips of somebody who has not read the language: each has a help that mends it."""

import pytest

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.lang import loads

SLIPS = {
    "recipe my_first\nprune Conv2d to 80%\n": "a block has braces: `recipe my_first { }`",
    "mix {\n  path sparse\n  loss cross_entropy(sparse)\n}\n": (
        "a path has a view: `path sparse = masked`"
    ),
    "prune Conv2d where kernel_size == (3, 3) to 80%\n": (
        "a tuple compares so in all its entries: `kernel_size == 3`"
    ),
    'prune Conv2d in re"layer.*" to 80%\n': (
        '`in` takes a quoted name with `*`; a pattern selects layers alone: `re"layer.*"`'
    ),
    "prune * to 80%\n": '`"**"` selects every layer',
    "prune all to 80%\n": '`"**"` selects every layer',
}


@pytest.mark.parametrize("text", SLIPS)
def test_a_first_slip_has_a_help_that_mends_it(text):
    with pytest.raises(RecipeError) as error:
        loads("language 1\n" + text)
    assert error.value.diagnostics[0].help == SLIPS[text]


def of_length(epochs):
    recipe = f"language 1\nprune Conv2d to global(80%) {{ schedule = cubic(0ep..70% run) }}\n{MIX}"
    with pytest.raises(RecipeError) as error:
        loads(f"{recipe}train {{ epochs = {epochs} optimizer = sgd(lr=0.1) }}\n")
    return [(one.code, one.message, one.help) for one in error.value.diagnostics]


MIX = """mix {
  path sparse = masked
  update kept by sparse
  loss cross_entropy(sparse)
  deploy sparse
}
"""


@pytest.mark.parametrize(
    "written, number, meant",
    [
        ("1e1 ep", "1e1", "10 ep"),
        ("1e1ep", "1e1", "10 ep"),
        ("1e2 steps", "1e2", "100 steps"),
        ("1e300 ep", "1e300", None),
    ],
)
def test_an_exponent_before_a_unit_is_what_is_wrong_and_not_the_unit(written, number, meant):
    fact = f"a number with an exponent, `{number}`, takes no unit of time"
    assert of_length(written) == [("E107", fact, meant and f"did you mean `{meant}`?")]


@pytest.mark.parametrize("epochs", ["-1ep", "0ep"])
def test_a_run_of_no_length_is_the_one_error_and_not_the_ranges_in_it(epochs):
    assert [code for code, _, _ in of_length(epochs)] == ["E205"]
