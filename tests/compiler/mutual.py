"""A recipe of two paths that teach each other, for what is tried on one of them, and its steps.

In:   the rule's selector and target; settings of the sparse and of the dense path; a Dual.
Out:  the checked recipe; outputs and gradients.
Not:  no test.
"""

import torch

import dcil_dsl as dcil
from dcil_dsl.compiler.checkpoint_activations import recompute_activations

RECIPE = """
language 1
prune {selector} to {target}
mix {{
  path sparse = masked {{ {sparse} }}
  path dense  = full {{ {dense} }}
  update kept   by sparse
  update pruned by dense
  private BatchNorm2d
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2)
  loss kl(student=dense, teacher=sparse, temperature=2)
  deploy sparse
}}
train {{ epochs = 2ep  optimizer = sgd(lr=0.1) }}
"""


def mutual(selector: str, target: str, sparse: str = "", dense: str = ""):
    return dcil.loads(RECIPE.format(selector=selector, target=target, sparse=sparse, dense=dense))


def two_steps(dual, images, labels, change=None, autocast=False):
    """(dual, the outputs of the second step, the gradients of both added up by name); the weights
    and with them the masks differ between the two.

    change  recompute_activations: the way in which the steps are made
    """
    plan = dual.plan
    if change is recompute_activations:
        recompute_activations(dual)
    for step in range(2):
        with torch.no_grad():
            for _, parameter in dual.named_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        dual.refresh(step)
        dual.begin_step(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = dual(images)
        dcil.loss(plan, outputs, labels, step).backward()
    gradients = {name: p.grad for name, p in dual.named_parameters()} | {"x": images.grad}
    return dual, outputs, gradients
