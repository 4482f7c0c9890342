"""A recipe with a 2:4 pattern, and whether a device has sparse tensor cores."""

import torch

RECIPE = """
language 1
data synthetic {{ batch_size = 64  image_size = 16 }}
prune Linear except last Linear to 2:4 {{ refresh = 2 steps }}
mix {{
  path sparse = masked {{ {sparse} }}
  path dense  = full
  update kept   by sparse
  update pruned by 0.5 * sparse + 0.5 * dense
  private LayerNorm
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2)
  deploy sparse
}}
train {{ epochs = 2ep  optimizer = sgd(lr=0.01, momentum=0.9) }}
"""


def has_cores(device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
