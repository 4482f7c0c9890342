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
