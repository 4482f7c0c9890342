"""A recipe of two paths that teach each other, for what is tried on one of them.

In:   the rule's selector and target; settings of the sparse and of the dense path.
Out:  the checked recipe.
Not:  no test.
"""

import dcil_dsl as dcil

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
    return dcil.loads(
        RECIPE.format(selector=selector, target=target, sparse=sparse, dense=dense)
    )
