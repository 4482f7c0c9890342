"""The recipe of most tests: a masked and a full path, each with its loss.

In:   rules; settings of `mix` and `train`.
Out:  the text of the recipe.
Not:  nothing is parsed here.
"""

SHORT = "epochs = 2ep  optimizer = sgd(lr=0.1)"


def two_paths(rules, mix="", train=SHORT, loss="cross_entropy"):
    return f"""language 1
{rules}
mix {{
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  {mix}
  loss {loss}(sparse)
  loss {loss}(dense)
  deploy sparse
}}
train {{
  {train}
}}
"""
