"""A long name whose end is missing gets a model that begins so, not one of the same length."""

import pytest

from dcil_dsl.diagnostics import InputError
from dcil_dsl.zoo.spec import _pick

KNOWN = dict.fromkeys(
    ["mobilenetv3_rw", "mobilenetv3_small_050", "mobilenetv3_small_100", "resnet18", "resnet101"]
)


@pytest.mark.parametrize(
    "name, near",
    [
        ("mobilenetv3_smal", "mobilenetv3_small_050"),
        ("resnet17", "resnet18"),
        ("mobilenetv3rw", "mobilenetv3_rw"),
    ],
)
def test_a_name_gets_the_nearest(name, near):
    with pytest.raises(InputError) as error:
        _pick(KNOWN, name, "timm")
    assert error.value.help == f"did you mean `timm:{near}`?"
