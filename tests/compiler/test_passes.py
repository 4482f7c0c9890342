"""Each pass prints; what is printed is pinned."""

from support import golden
from support.comparison import compile_text
from support.nets import Tiny
from support.two_paths import two_paths

from dcil_dsl.compiler import add_masks_and_twins, run_passes
from dcil_dsl.compiler.show import code_of, show_graph
from dcil_dsl.model import trace_model

RECIPE = two_paths(
    "prune Conv2d to global(50%)\nkeep first Conv2d",
    mix="private BatchNorm2d\n  private last Linear",
)


def test_every_pass_of_dcil_on_a_net_that_fits_on_a_screen(request):
    plan = compile_text(RECIPE, Tiny()).plan
    traced = trace_model(Tiny())
    add_masks_and_twins(traced.model, plan)
    parts = [("trace", code_of(traced.train))]
    for name, graph in run_passes(traced.train, traced.model, plan, plan.phases[0]):
        parts.append((name, code_of(graph)))
    text = "\n\n".join(f"# {name}\n{code}" for name, code in parts) + "\n"
    golden.check(request, "compiler/passes", text)


def test_a_blend_of_updates_and_a_window(request):
    text = RECIPE.replace("by dense", "by 0.9 * dense + 0.1 * sparse").replace(
        "loss cross_entropy(dense)", "loss cross_entropy(dense) until 1ep"
    )
    golden.check(request, "compiler/blend", show_graph(compile_text(text, Tiny())))
