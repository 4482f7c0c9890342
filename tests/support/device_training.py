"""Train a small recipe on a device."""

from dcil_dsl.jobs.train import train
from dcil_dsl.lang import loads

RECIPE = """
language 1

model resnet20 { classes = 10 }
data synthetic { batch_size = 64  image_size = 16 }

prune Conv2d to global(90%) {
  schedule = cubic(0ep..1ep)
  refresh  = 2 steps
}

mix {
  path sparse = masked
  path dense  = full
  update kept by sparse
  update pruned by dense
  private BatchNorm2d, last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2) from 1ep
  deploy sparse
}

train {
  epochs    = 2ep
  optimizer = sgd(lr=0.05, momentum=0.9, nesterov=true, weight_decay=1e-4)
  lr        = cosine()
}
"""


def run(device, out, **options):
    recipe = loads(RECIPE)
    return train(recipe, "dcil:resnet20", "synthetic", out=out, device=str(device), **options)
