"""A sound recipe to put wrong statements into.

In:   a few statements.
Out:  the text of a whole recipe: those statements, and from the sound one what they leave out.
Not:  nothing is parsed here.
"""

from __future__ import annotations

SOUND = {
    "mix": """mix {
  path sparse = masked
  path dense  = full

  update kept   by sparse
  update pruned by dense

  loss cross_entropy(sparse)
  loss cross_entropy(dense)

  deploy sparse
}
""",
    "train": """train {
  epochs    = 10ep
  optimizer = sgd(lr=0.1, momentum=0.9)
}
""",
    "prune": "prune Conv2d to 90%\n",
}


def completed(statements: str, whole: bool = False) -> str:
    """The statements in a whole recipe. `whole`: those that give their own `language` are."""
    words = {line.split()[0] for line in statements.splitlines() if line[:1].isalpha()}
    if "language" in words and whole:
        return statements
    missing = "".join(text for word, text in SOUND.items() if word not in words)
    first = "" if "language" in words else "language 1\n"
    return f"{first}{statements}\n{missing}"
