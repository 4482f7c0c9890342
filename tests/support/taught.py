"""A job of seconds with teachers: the recipe, a trained network next to it, and the run.

In:   a folder.
Out:  taught.prune, big.safetensors and net.py in it; a run of the recipe.
Not:  no test.
"""

import torch
from safetensors.torch import save_file

import dcil_dsl as dcil
from dcil_dsl.zoo import build_model
from support.tiny_job import NET

BIG = 'path big = network("dcil:small_vit", weights="big.safetensors")'
SLOW = "path slow = ema(sparse, decay=0.9)"
KL = "loss 0.5 * kl(student=sparse, teacher=big, temperature=2)"
RECIPE = """language 1
recipe taught {{ title = "two teachers" }}
data digits {{ batch_size = 128  image_size = 16 }}
prune Conv2d to global(80%) {{ schedule = linear(0ep..1ep)  refresh = 2 steps }}
mix {{
  path sparse = masked
  {big}
  {slow}
  update kept, pruned by sparse
  loss cross_entropy(sparse)
  {losses}
  deploy sparse
}}
train {{
  epochs    = 2ep
  optimizer = sgd(lr=0.05, momentum=0.9)
}}
"""
LOSSES = KL + "\n  loss mse(sparse, teacher=slow) from 3 steps"


def write_big(folder, classes=10, seed=5):
    torch.manual_seed(seed)
    save_file(build_model("dcil:small_vit", classes).state_dict(), folder / "big.safetensors")


def write_job(folder, big=BIG, slow=SLOW, losses=LOSSES):
    """The recipe's path."""
    folder.mkdir(exist_ok=True, parents=True)
    write_big(folder)
    (folder / "net.py").write_text(NET)
    (folder / "taught.prune").write_text(RECIPE.format(big=big, slow=slow, losses=losses))
    return folder / "taught.prune"


def trained(folder, out, **options):
    """A run of the recipe of the folder."""
    return dcil.train(
        str(folder / "taught.prune"),
        f"{folder}/net.py:Net",
        "digits",
        out=out,
        device="cpu",
        workers=0,
        warn=lambda _: None,
        **options,
    )
