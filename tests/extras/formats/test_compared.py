"""What an export is compared with: a wrong number is refused, however small, and at every size."""

import pytest
import torch
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed, Origin
from dcil_dsl.extras.formats.graph import compare, distance, refuse_broadcast, trace_for_export
from dcil_dsl.jobs.example import example_of
from dcil_dsl.plan.plan import Model, Size


class Small(nn.Linear):
    """Outputs near to 1e-9."""

    def forward(self, x):
        return 1e-9 * super().forward(x)


def deployed(network, **shapes):
    sizes = {
        name: Size(shape=(1, *shape), dtype="float32" if len(shape) == 1 else "int64")
        for name, shape in shapes.items()
    }
    model = Model(name=None, classes=None, options={})
    origin = Origin(
        recipe="none",
        sha256="",
        model=model,
        data=None,
        path="sparse",
        step=0,
        promises=(),
        sizes=sizes,
    )
    return Deployed(network, origin)


def compared(network, export, is_free=True):
    """What `compare` says of an export, a function of one input."""
    given = deployed(network, x=(4,))
    inputs = example_of(given, 2)
    return compare(given, inputs, lambda inputs: [export(*inputs.args)], is_free)


def test_an_export_with_wrong_small_numbers_is_refused():
    net = Small(4, 3)
    assert compared(net, net).difference == 0
    with pytest.raises(InputError, match="differs from the network"):
        compared(net, lambda x: 1.01 * net(x))


def test_the_rounding_of_small_differences_of_large_numbers_is_allowed():
    """1e4 in float32 has steps of 1e-3: another order of a sum gives other last digits."""

    class Cancels(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1e4 - 1e4

    class Elsewhere(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    net, other = Cancels(4, 3), Elsewhere(4, 3)
    other.load_state_dict(net.state_dict())
    assert 1e-4 < compared(net, other).difference < 1e-2
    with pytest.raises(InputError, match="differs from the network"):
        compared(net, lambda x: 1.1 * other(x))


def test_an_export_that_mixes_examples_is_refused():
    """Three equal examples would not show it."""
    net = nn.Linear(4, 3)
    with pytest.raises(InputError, match="differs from the network"):
        compared(net, lambda x: net(x).flip(0) if len(x) == 3 else net(x))


def test_an_export_that_is_wrong_for_one_example_says_from_which_batch_size_it_holds():
    net = nn.Linear(4, 3)
    assert compared(net, net).batches == "any"
    assert compared(net, net, is_free=False).batches == "2 alone"
    wrong = compared(net, lambda x: net(x) * (2 if len(x) == 1 else 1))
    assert wrong.batches == "any from 2 on" and wrong.difference == 0


def fails(x):
    raise RuntimeError("no kernel\nfor this")


def test_an_export_that_does_not_run_is_refused_with_the_reason():
    with pytest.raises(InputError, match="does not run on a batch of 2: RuntimeError: no kernel"):
        compared(nn.Linear(4, 3), fails)


def test_a_network_without_one_finite_number_is_refused():
    class Nothing(nn.Linear):
        def forward(self, x):
            return super().forward(x) * float("nan")

    with pytest.raises(InputError, match="no finite number"):
        compared(Nothing(4, 3), Nothing(4, 3))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ([1.0, NAN, INF], [1.0, NAN, INF], 0.0),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0], [NAN], INF),
        ([1 + 1j], [1 - 1j], 2**0.5),
        ([4.0, 0.0], [4.0, 2.0], 0.5),
        ([0.0], [0.5], 0.5),
        ([], [], 0.0),
    ],
)
def test_the_distance_counts_every_number(one, other, expected):
    assert distance(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected)


class Bound(nn.Linear):
    """An `if` on the batch size."""

    def forward(self, x):
        return super().forward(x) * (2 if x.shape[0] < 3 else 1)


def test_a_network_that_binds_its_batch_size_is_traced_for_one_example():
    traced = trace_for_export(deployed(Bound(4, 3), x=(4,)))
    assert not traced.is_free and traced.inputs.batch_size() == 1
    assert trace_for_export(deployed(nn.Linear(4, 3), x=(4,))).is_free


def test_scales_never_enlarge_a_weight():
    refuse_broadcast((8, 4), (8, 1), (), (1, 4))
    for other in ((1, 8, 4), (8, 8), (3,), (2, 8, 4)):
        with pytest.raises(InputError, match="scales do not fit"):
            refuse_broadcast((8, 4), other)
    with pytest.raises(InputError, match="scales do not fit"):
        refuse_broadcast((1 << 20, 1), (1, 1 << 20))


def test_whole_numbers_are_zeros_and_ones_and_no_mask_is_empty():
    inputs = example_of(deployed(nn.Identity(), ids=(5, 7), mask=(5, 7)), 3)
    for tensor in inputs.tensors():
        assert tensor.unique().tolist() == [0, 1] and tensor.dtype == torch.int64
        assert tensor.flatten(1).amax(1).eq(1).all()
