"""E1xx: a text that does not parse."""

from __future__ import annotations

from dcil_dsl.diagnostics.code import Code, entry

SYNTAX: tuple[Code, ...] = (
    entry(
        "E101",
        "something else was expected",
        """The grammar does not allow this word or sign here. The message lists what it allows.""",
        "prune Conv2d 90%",
        "prune Conv2d to 90%",
    ),
    entry(
        "E102",
        "a character that recipes do not use",
        """Strings use double quotes, settings `=`, comments `#`, and no statement needs a
          terminator.""",
        "let text = 'ours'",
        'model resnet18 { note = "ours" }',
    ),
    entry(
        "E103",
        "a string is not closed",
        "A string begins and ends with a double quote on one line.",
        'keep "layer1.0.conv1',
        'keep "layer1.0.conv1"',
    ),
    entry(
        "E104",
        "a block is not closed",
        """A statement begins, or the recipe ends, before the `}` of an earlier `{`.""",
        """
          pruning {
            refresh = 16 steps
          prune Conv2d to 90%
          """,
        """
          pruning {
            refresh = 16 steps
          }
          prune Conv2d to 90%
          """,
    ),
    entry(
        "E105",
        "not a statement",
        "A statement begins with one of the words of the language.",
        "purne Conv2d to 90%",
        "prune Conv2d to 90%",
    ),
    entry(
        "E106",
        "a setting without a value",
        "A value is missing after `=`.",
        """
          pruning {
            score   =
            refresh = 16 steps
          }
          """,
        """
          pruning {
            score   = magnitude
            refresh = 16 steps
          }
          """,
    ),
    entry(
        "E107",
        "a quantity without its unit, or with an unknown one",
        """A time is written in epochs, steps, or as a share of the run: `5ep`, `16 steps`,
          `75% run`. A percentage alone is never a time.""",
        "pruning { refresh = 3 epoks }",
        "pruning { refresh = 3ep }",
    ),
    entry(
        "E108",
        "the version of the language is missing",
        "Every recipe starts with `language 1`.",
        "language\nrecipe mine { }",
        "language 1\nrecipe mine { }",
    ),
    entry(
        "E109",
        "an unknown version of the language",
        "This program reads language 1. A recipe in a later language needs a later program.",
        "language 7",
        "language 1",
    ),
    entry(
        "E110",
        "not a text",
        "A recipe is UTF-8 text without NUL characters; a line ends with a line feed.",
    ),
    entry("E111", "an empty recipe", "The file holds only white space and comments."),
    entry(
        "E112",
        "a word of the language used as a name",
        """The words of the grammar, such as `data`, `first`, `to` and `none`, cannot name
          anything else.""",
        "let data = 90%",
        "let data_target = 90%\nprune Conv2d to data_target",
    ),
    entry(
        "E113",
        "in the wrong place",
        """`language` comes first and once, `extends` right after it; settings are in blocks;
          `path`, `update`, `private`, `loss` and `deploy` are in `mix`.""",
        "refresh = 16 steps",
        "pruning { refresh = 16 steps }",
    ),
    entry(
        "E114",
        "nested too deeply, or grown too large",
        """Give names to nested parts with `let` and `layers`. With all names replaced, a recipe
          may have at most 100,000 values and 100,000 parts of selectors: each list that names
          another one twice doubles it.""",
    ),
    entry(
        "E115",
        "closed but never opened",
        "A `}`, `)` or `]` has nothing to close.",
        "prune Conv2d to 90% }",
        "prune Conv2d to 90%",
    ),
)
