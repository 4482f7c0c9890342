"""`groups` of `train`: which parameters a word takes in a model, and how their twins learn."""

import torch
from support.resolving import Net, codes_of, plan_of

import dcil_dsl as dcil
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.show_training import show_training
from dcil_dsl.plan.text import Page

HEAD = "layers head = Linear\nlayers norms = BatchNorm2d\nprune Conv2d to 50%\n"
TRAIN = """train {
  epochs    = 10ep
  optimizer = sgd(lr=0.1, momentum=0.9, weight_decay=0.01)
  lr        = cosine()
  groups    = [%s]
}
"""


def plan_with(groups, statements=HEAD, **more):
    return plan_of(statements, train=TRAIN % groups, **more)


def settings_of(plan, model=None):
    """{parameter of the dual graph: (rate, decay)} of the optimizer that the plan makes."""
    dual = dcil.compile(plan, model or Net())
    optimizer = plan.make_optimizer(dual)
    return {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }, dual


def test_no_decay_takes_every_norm_and_bias_and_no_other_weight():
    found, _ = settings_of(plan_with("no_decay()"))
    assert {name for name, (_, decay) in found.items() if decay == 0} == {
        name for name, p in Net().named_parameters() if p.dim() <= 1
    }


def test_a_group_takes_the_layers_that_it_names_and_later_words_win():
    found, _ = settings_of(plan_with("no_decay(), group(head, lr_scale=10)"))
    assert found["head.weight"] == (1.0, 0.01) and found["head.bias"] == (1.0, 0.0)
    assert found["stem.weight"] == (0.1, 0.01)


def test_the_twins_of_a_private_module_learn_as_their_original():
    mix = """mix {
      path sparse = masked  path dense = full
      update kept by sparse  update pruned by dense
      private BatchNorm2d
      loss cross_entropy(sparse)  loss cross_entropy(dense)
      deploy sparse
    }"""
    found, dual = settings_of(plan_with("group(norms, lr_scale=0.5), no_decay()", mix=mix))
    twins = [name for name in found if "__dense" in name]
    assert twins and all(found[name] == (0.05, 0.0) for name in twins)
    assert not any(dual.get_parameter(name).dim() > 1 for name in twins)


def test_frozen_weights_stay_as_they_are_and_all_others_learn():
    statements = "layers stem = first Conv2d\nprune Conv2d except first Conv2d to 50%"
    plan = plan_with("frozen(stem)", statements)
    dual = dcil.compile(plan, Net())
    optimizer = plan.make_optimizer(dual)
    before = {name: p.detach().clone() for name, p in dual.named_parameters()}
    dual.begin_step(0)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    dcil.loss(plan, dual(x), y, 0).backward()
    optimizer.step()
    same = {n for n, p in dual.named_parameters() if torch.equal(before[n], p)}
    assert same == {"stem.weight", "stem.bias"}


def test_a_plan_with_groups_survives_json_and_says_them():
    plan = plan_with("no_decay(), group(head, lr_scale=10, weight_decay=0)")
    assert Plan.from_json(plan.to_json()) == plan
    text = show_training(plan, Page(width=100, unicode=False))
    assert "no weight decay" in text and "of head: 10 times the rate, weight decay 0" in text


def test_a_group_that_cannot_learn_so_is_an_error():
    def codes(groups, statements=HEAD):
        return codes_of(statements, train=TRAIN % groups)

    assert codes("frozen(head)") == []
    assert codes("frozen(all)", "layers all = Conv2d, Linear\nprune Conv2d to 50%") == ["E326"]
    whole = 'layers all = "**"\nkeep Conv2d'
    assert codes("frozen(all)", whole) == ["E326"]
    assert codes("group(acts, lr_scale=2)", "layers acts = ReLU\nprune Conv2d to 50%") == ["E326"]
