"""Where a run multiplies by its 2:4 patterns: on sparse tensor cores, or in full, and why.

In:   a Dual on its device, Options.
Out:  why each of these weights is computed in full, "" where it is not; that in words; KeptStep,
      which says so in a run.
Not:  nothing is decided here: pattern.py asks the same of the device at each call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.extras.sparse_compute.tensor_cores import Product, why_whole
from dcil_dsl.plan.cost import in_pattern
from dcil_dsl.training.machine import DTYPES, Options, precision_of
from dcil_dsl.training.step import Wrapper

COMPILED = "torch.compile would have to leave its graph"


class KeptStep(Wrapper):
    """A step of a plan with `compute = kept`. The graph computes; this says where."""

    def notes(self) -> tuple[str, ...]:
        return self.inner.notes() + pattern_words(self._found())

    def dense(self) -> tuple[str, ...]:
        return tuple(name for name, why in self._found().items() if why)

    def _found(self) -> dict[str, str]:
        return why_computed_whole(self.plain.dual, self.plain.options)


def why_computed_whole(dual: Dual, options: Options) -> dict[str, str]:
    """The reason by weight; empty where no path asks for `compute = kept`.

    A product that was not tried on the device yet is tried now and compared with the dense one.
    """
    plan = dual.plan
    if not any(path.compute == "kept" for path in plan.paths):
        return {}
    names = in_pattern(plan.groups, plan.layers)
    if options.compile:
        return dict.fromkeys(names, COMPILED)
    found = {}
    for name in names:
        weight = dual.get_parameter(name)
        dtype = DTYPES.get(precision_of(plan, options), weight.dtype)
        has_bias = dual.get_submodule(name.rpartition(".")[0]).bias is not None
        found[name] = why_whole(Product(weight.device, dtype, tuple(weight.shape), has_bias))
    return found


def pattern_words(found: Mapping[str, str]) -> tuple[str, ...]:
    """What the run says of it, a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for name, why in found.items():
        names.setdefault(why, []).append(name)
    words = []
    for why, own in names.items():
        if why:
            words.append(f"computed in full, with the same result: 2:4 of {_some(own)}; {why}")
        else:
            words.append(
                f"on sparse tensor cores in the forward pass: 2:4 of {_some(own)}; the device gave "
                "the dense product"
            )
    return tuple(words)


def _some(names: Iterable[str]) -> str:
    names = [name.removesuffix(".weight") for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
