"""Filters that are tied: which they are, what a budget counts of them, and what it keeps."""

import json

import pytest
import torch
from support.resolving import MIX, TRAIN
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.compiler.masks import make_masks
from dcil_dsl.diagnostics import Diagnostics, RecipeError
from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.explain import explain_layer
from dcil_dsl.plan.facts import count_facts
from dcil_dsl.plan.group import budget_size, kept_in_budget, num_units
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.schedule import keeps_at, reached_at
from dcil_dsl.plan.show import show_plan
from dcil_dsl.training.sparsity import check_sparsity
from dcil_dsl.words.granularity import Filter


class Residual(nn.Module):
    """a and c write one stream; b is inside; d concatenates two; e adds to that; g has groups."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 5, 1)
        self.c = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.d = nn.Conv2d(6, 4, 1)
        self.e = nn.Conv2d(6, 10, 1)
        self.h = nn.Conv2d(10, 8, 1)
        self.g = nn.Conv2d(8, 4, 1, groups=4)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        x = x + self.c(self.b(x).relu())
        y = torch.cat([x, self.d(x)], 1) + self.e(x)
        return self.fc(self.depth(self.g(self.h(y.relu()))).mean((2, 3)))


# By hand: the filters of every unit. `x` is of a and c, and of the first six of e.
UNITS = [
    *([("a", i), ("c", i), ("e", i)] for i in range(6)),
    *([("b", i)] for i in range(5)),
    *([("d", i), ("e", 6 + i)] for i in range(4)),
    *([("h", 2 * i), ("h", 2 * i + 1), ("g", i), ("depth", i)] for i in range(4)),
]


def resolve(statements, model=None, size=6):
    """(the Plan or None, every diagnostic)."""
    recipe, report = loads(f"language 1\n{statements}\n{MIX}\n{TRAIN}", "x.prune"), Diagnostics()
    example = (torch.zeros(1, 3, size, size),) if size else None
    try:
        traced = trace_model(model or Residual(), example)
        return resolve_recipe(recipe, traced, 10, report), report.found
    except RecipeError as error:
        return None, error.diagnostics


def plan_of(statements, model=None):
    plan, found = resolve(statements, model)
    assert plan is not None and not found, found
    return plan


def units_of(group):
    """The units of a plan's group as in UNITS, in any order."""
    units = []
    for tie in group.ties:
        lists = {part.parameter.removesuffix(".weight"): part.listed() for part in tie.parts}
        for i in range(tie.num_units):
            units.append(
                sorted(
                    (name, filters[j])
                    for name, filters in lists.items()
                    for j in range(
                        i * len(filters) // tie.num_units, (i + 1) * len(filters) // tie.num_units
                    )
                )
            )
    return sorted(units)


def test_filters_that_meet_in_sums_groups_and_concatenations_are_units():
    (group,) = plan_of("prune Conv2d to global(50%, granularity=filter)").groups
    assert units_of(group) == sorted(sorted(unit) for unit in UNITS)
    assert group.parameters == tuple(f"{n}.weight" for n in "a b c d e h g depth".split())
    assert (budget_size(group), sum(num_units(group))) == (47, len(UNITS))


@pytest.mark.parametrize("groups, width", [(2, 8), (12, 16)])
def test_large_groups_lose_the_same_place_in_each_inputs_and_outputs_apart(groups, width):
    first, second = width * groups, 2 * width * groups
    net = nn.Sequential(
        nn.Conv2d(3, first, 1),
        nn.Conv2d(first, second, 1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(second, 4, 1),
    )
    plan, _ = resolve('prune Conv2d to 50% { granularity = filter }\nkeep "3"', net)
    (group,) = plan.groups
    assert [tie.filters_of_unit for tie in group.ties] == [
        {"0.weight": groups},
        {"1.weight": groups},
    ]
    places = [tie.parts[0].listed()[: groups + 1] for tie in group.ties]
    assert places == [[*range(0, first, width), 1], [*range(0, second, 2 * width), 1]]
    dual = dcil.compile(plan, net)
    dual.refresh(reached_at(group))
    x = torch.randn(2, 3, 6, 6)
    small = dcil.compact(dcil.export(dual), (x,), num_inputs=2).model
    assert small[1].weight.shape == (second // 2, width // 2, 1, 1) and small[1].groups == groups


def test_small_groups_go_as_wholes_with_the_filters_that_feed_them():
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 128, 1, groups=8), nn.Conv2d(128, 4, 1))
    plan, _ = resolve('prune Conv2d to 50% { granularity = filter }\nkeep "2"', net)
    assert [tie.filters_of_unit for tie in plan.groups[0].ties] == [{"0.weight": 8, "1.weight": 16}]


def kept_by_loops(scores, budget, costs):
    """The units that stay: the best of each tie, then the next best that fits, in float64."""
    score = []
    for unit in UNITS:
        weights = [w.item() for n, i in unit for w in scores[f"{n}.weight"][i].double().flatten()]
        score.append(sum(weights) / len(weights))
    make = [tuple(name for name, _ in unit) for unit in UNITS]
    order = sorted(range(len(UNITS)), key=lambda i: -score[i])
    kept = {max((i for i in order if make[i] == own), key=lambda i: score[i]) for own in make}
    left = budget - sum(costs(UNITS[i]) for i in kept)
    for i in order:
        if i not in kept and costs(UNITS[i]) <= left:
            kept.add(i)
            left -= costs(UNITS[i])
    return kept


@pytest.mark.parametrize("share", [30, 50, 62])
@pytest.mark.parametrize("of", ["units", "weights", "flops"])
def test_masks_keep_the_units_of_the_highest_mean_score_that_fit_the_budget(share, of):
    plan = plan_of(f"prune Conv2d to global({share}%, of={of}, granularity=filter)")
    (group,) = plan.groups
    torch.manual_seed(share)
    shapes = {layer.parameter: layer.shape for layer in plan.layers}
    scores = {name: torch.rand(shapes[name]) for name in group.parameters}
    masks = make_masks(group, list(scores.values()), reached_at(group))
    sizes = {name: score[0].numel() for name, score in scores.items()}
    places = 36 if of == "flops" else 1
    cost = {"units": lambda n: 1}.get(of, lambda n: places * sizes[f"{n}.weight"])
    kept = kept_by_loops(
        scores,
        keeps_at(group, reached_at(group))[0],
        lambda unit: sum(cost(name) for name, _ in unit),
    )
    expected = {name: torch.zeros_like(s, dtype=torch.bool) for name, s in scores.items()}
    for i in kept:
        for name, filter in UNITS[i]:
            expected[f"{name}.weight"][filter] = True
    for name, mask in zip(scores, masks, strict=True):
        assert torch.equal(mask, expected[name]), name


def test_a_budget_each_takes_the_same_share_of_every_tie():
    plan = plan_of("prune Conv2d to 50% { granularity = filter }")
    (group,) = plan.groups
    assert keeps_at(group, reached_at(group)) == tuple(n // 2 for n in num_units(group))
    facts = {layer.parameter: layer for layer in count_facts(plan).layers}
    # e has six filters in one tie and four in another: 3 + 2 of 10 stay.
    assert facts["e.weight"].num_kept == 5 * 6
    assert facts["h.weight"].num_kept == 4 * 10
    assert kept_in_budget(group, keeps_at(group, reached_at(group))) == 9 + 2 + 4 + 8


@pytest.mark.parametrize("target", ["global(40%)", "40%", "erk(40%)", "lamp(40%)"])
def test_masks_of_tied_filters_pass_the_checks_of_training_and_of_the_file(target):
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 6, 6)
    text = f"language 1\nprune Conv2d to {target} {{ granularity = filter }}\n{MIX}\n{TRAIN}"
    plan = dcil.resolve(loads(text, "x.prune"), model, steps_per_epoch=10, example_inputs=(x,))
    dual = dcil.compile(plan, model)
    step = plan.num_steps - 1
    dual.refresh(step)
    check_sparsity(dual, step)
    sparse = dcil.export(dual)
    small = dcil.compact(sparse.double(), (x.double(),), num_inputs=2)
    assert small.difference < 1e-12
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in small.model.parameters()) < 0.75 * before


def test_a_filter_tied_to_what_stays_is_bound_and_the_reason_is_shown():
    plan, found = resolve(
        'prune Conv2d to 50% { granularity = filter }\nkeep "c"\nprune "h" to 60%'
    )
    (group, _) = plan.groups
    bound = {tuple(tie.filters_of_unit): tie.bound for tie in group.ties if tie.bound}
    assert bound == {
        ("a.weight", "e.weight"): "`c` is kept",
        ("g.weight", "depth.weight"): "`h` is pruned by the rule at x.prune:4",
    }
    assert group.targets == (0.0, 0.5, 0.5, 0.0)
    assert [d.code for d in found] == ["W307"]
    step = reached_at(group)
    assert keeps_at(group, step) == (6, 2, 2, 4)
    text = " ".join(show_plan(plan).split())
    assert "tied filters: 1 set in several layers, 1 in one, 2 sets bound" in text
    assert "6 units of a, e; bound: `c` is kept" in text


def test_a_layer_is_explained_with_what_its_filters_are_tied_to_and_bound_by():
    text = 'language 1\nprune Conv2d to 50% { granularity = filter }\nkeep "h"\n' + MIX + TRAIN
    recipe, traced = loads(text, "x.prune"), trace_model(Residual(), (torch.zeros(1, 3, 6, 6),))
    plan = resolve_recipe(recipe, traced, 10, Diagnostics())
    assert "they go and stay with filters of `c`, `e`" in explain_layer("a", recipe, traced, plan)
    assert "none of them goes: `h` is kept" in explain_layer("g", recipe, traced, plan)


def test_what_the_model_returns_and_what_joins_no_layer_is_bound():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)
            self.c = nn.Conv2d(5, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x) + x))

    plan, (warning,) = resolve("prune Conv2d to global(20%, granularity=filter)", Net())
    (group,) = plan.groups
    assert [tie.bound for tie in group.ties] == [
        "`add` joins them with values of no layer",
        "",
        "they are what the model returns",
    ]
    assert warning.message == "5 filters of 2 layers are bound and stay"
    assert keeps_at(group, reached_at(group)) == (8,)  # of ten, and the bound five are in it
    _, (error,) = resolve("prune Conv2d to global(60%, granularity=filter)", Net())
    assert error.code == "E304" and "the floors keep 6" in error.message


def test_without_an_example_input_ties_are_an_error_and_no_guess():
    statements = "prune Conv2d to 50% { granularity = filter }"
    _, (error,) = resolve(statements, size=None)
    assert error.code == "E324" and "ties = none" in error.help
    plan, _ = resolve(statements.replace("filter", "filter(ties = none)"), size=None)
    assert plan.groups[0].ties == ()


def test_a_model_that_is_opaque_has_its_filters_pruned_alone_with_a_warning():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.a(-x)

    plan, (warning,) = resolve("prune Conv2d to 50% { granularity = filter }", Net())
    assert plan.groups[0].ties == () and num_units(plan.groups[0]) == (4,)
    assert warning.code == "W307" and "kept opaque" in warning.message


def test_ties_are_plain_json_in_runs_and_come_back_as_they_were():
    plan = plan_of("prune Conv2d to 50% { granularity = filter }")
    values = json.loads(plan.to_json())
    tie = values["groups"][0]["ties"][0]
    assert tie["parts"][0] == {"parameter": "a.weight", "filters": [[0, 6, 1]]}
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_from_before_ties_has_none():
    plan = plan_of("prune Conv2d to 50% { granularity = filter(ties = none) }")
    values = json.loads(plan.to_json())
    (group,) = values["groups"]
    assert group.pop("ties") == []
    group["granularity"] = {"word": "filter"}
    assert Plan.from_json(json.dumps(values)) == plan
    assert Plan.from_json(json.dumps(values)).groups[0].unit == Filter(ties=None)


@pytest.mark.parametrize(
    "filters, message",
    [
        ([[0, 5, 1]], "do not fall into its units"),
        ([[0, 6, 2]], "do not have every filter once"),
        ([[0, 10**12, 1]], "do not fall into its units|do not have every filter once"),
        ([[0, 0, 1]], "greater than 0"),
    ],
)
def test_a_plan_whose_ties_are_not_of_its_filters_is_refused(filters, message):
    values = json.loads(plan_of("prune Conv2d to 50% { granularity = filter }").to_json())
    values["groups"][0]["ties"][0]["parts"][0]["filters"] = filters
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(values))


def test_the_heads_of_an_attention_are_units_of_its_rows():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)[..., :8]
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            x = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.fc(self.proj(x.transpose(1, 2).reshape(b, n, c)).mean(1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attention = nn.Conv2d(3, 8, 1), Attention()

        def forward(self, x):
            return self.attention(self.stem(x))

    plan, _ = resolve("prune Linear to global(30%, granularity=filter)", Net())
    (group,) = plan.groups
    heads = next(tie for tie in group.ties if tie.parts[0].parameter.endswith("qkv.weight"))
    assert heads.num_units == 2 and heads.filters_of_unit == {"attention.qkv.weight": 12}
    assert heads.parts[0].listed()[:8] == [0, 1, 2, 3, 8, 9, 10, 11]
