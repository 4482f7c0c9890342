"""The house rules that a machine can keep: imports, names, heads of files, frozen words."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dcil_dsl"
STAGES = (
    "diagnostics",
    "words",
    "lang",
    "masking",
    "model",
    "plan",
    "compiler",
    "zoo",
    "tasks",
    "data",
    "training",
    "exporting",
    "jobs",
    "cli",
    "extras",
    "integrations",
)
NEVER = {  # folder -> what it must not import, although it comes later in the list
    "masking": {"lang"},
    "model": {"lang"},
    "training": {"lang"},
    "exporting": {"lang"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = (
    FILES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
)


def stage_of(module: str) -> str:
    """ "dcil_dsl.plan.show" -> "plan". __init__ and __main__ count as the command line."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in STAGES else "cli"


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports_of(file: Path) -> list[str]:
    """The modules that a file imports, `from a import b` as a.b where that is a module."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.append(node.module)
            found += [
                f"{node.module}.{alias.name}" for alias in node.names if node.module == "dcil_dsl"
            ]
    return found


def test_a_file_imports_only_from_its_own_folder_or_an_earlier_one():
    wrong = []
    for file in FILES:
        relative = file.relative_to(ROOT).with_suffix("")
        own = stage_of(".".join(relative.parts))
        for name in imports_of(file):
            if not name.startswith("dcil_dsl."):
                continue
            other = stage_of(name)
            if STAGES.index(other) > STAGES.index(own) or other in NEVER.get(own, ()):
                wrong.append(f"{relative} imports {name}")
    assert wrong == []


def imported_files(file: Path) -> set[Path]:
    """The files of the package, or next to the file, that it imports: at any depth, for types
    too; `from a import b` counts as a.b where that is a file."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if file_of(name, file) else node.module for name in inner}
    return {found for name in found if (found := file_of(name, file)) and found != file}


def file_of(module: str, importer: Path) -> Path | None:
    folder = ROOT if module.split(".")[0] == PACKAGE.name else importer.parent
    place = folder.joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def test_no_files_import_one_another_in_a_circle():
    """Late imports and those for types alone count: a drawing of the imports has no circle."""
    import networkx

    graph = networkx.DiGraph(
        (file, other)
        for file in FILES + sorted((ROOT / "benchmarks").glob("*.py"))
        for other in imported_files(file)
    )
    circles = [sorted(c) for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    assert circles == []


def test_the_top_level_holds_what_it_is_said_to_hold_and_nothing_else():
    """A page that a test once wrote there was committed with it."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout of git")
    found = {line.partition("/")[0] for line in done.stdout.splitlines()}
    folders = {"dcil_dsl", "grammar", "recipes", "tests", "benchmarks", "docs"}
    texts = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE"}
    assert {name for name in found if name[0] != "."} == folders | texts | {"pyproject.toml"}


def test_no_module_lies_loose_at_the_top():
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()} - {"__pycache__"} == {
        *STAGES
    }


def test_core_imports_no_extra():
    """Extras are named in tables of dotted names, which are imported at first use."""
    wrong = [
        str(file.relative_to(ROOT))
        for file in FILES
        if stage_of(".".join(file.relative_to(ROOT).with_suffix("").parts)) != "extras"
        and any(name.startswith("dcil_dsl.extras") for name in imports_of(file))
    ]
    assert wrong == []


def test_each_extra_has_a_readme_that_says_what_is_proved_and_a_row_in_the_table():
    folder = PACKAGE / "extras"
    extras = sorted(file.parent for file in folder.glob("*/__init__.py"))
    table = (folder / "README.md").read_text()
    wrong = [
        extra.name
        for extra in extras
        if f"]({extra.name}/README.md)" not in table
        or not re.search(
            r"^## (Evidence|Status|What holds)$", (extra / "README.md").read_text(), re.M
        )
    ]
    assert extras and wrong == []


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by their name alone, and collects nothing where two are there."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_test_imports_a_test():
    """What tests share is in tests/support."""
    tests = list((ROOT / "tests").rglob("*.py"))
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in [*tests, *(ROOT / "benchmarks").rglob("*.py")]
        for name in imports_of(file)
        if name.rpartition(".")[2].startswith("test_")
    ]
    assert wrong == []
    shared = [file for file in tests if not file.stem.startswith(("test_", "conftest", "__init__"))]
    assert {file.parent.name for file in shared} == {"support"}


def test_lang_and_diagnostics_name_no_torch():
    for folder in ("lang", "diagnostics"):
        for file in (PACKAGE / folder).rglob("*.py"):
            names = {name.split(".")[0] for name in imports_of(file)}
            assert not names & {"torch", "torchvision", "rich", "typer"}, file


def test_words_import_torch_only_inside_the_methods_that_compute():
    """But for words/tensors: what words compute with on tensors, imported late."""
    for file in (PACKAGE / "words").rglob("*.py"):
        body = tree_of(file).body
        top = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {name for node in top for name in ast.unparse(node).replace(",", " ").split()}
        late = {name for name in names if name.split(".")[0] in ("torch", "torchvision")}
        late |= {name for name in names if name.startswith("dcil_dsl.words.tensors")}
        assert file.parent.name == "tensors" or not late, file


def test_checking_a_recipe_loads_no_torch():
    code = (
        "import sys, dcil_dsl, dcil_dsl.cli.commands, dcil_dsl.lang\n"
        "sys.argv = ['dcil', 'check', sys.argv[1]]\n"
        "try:\n    dcil_dsl.cli.commands.main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'networkx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    recipe = str(ROOT / "recipes" / "quickstart.prune")
    subprocess.run([sys.executable, "-c", code, recipe], check=True, cwd=ROOT)


def test_the_help_of_the_program_loads_neither_torch_nor_a_verb():
    code = (
        "import sys, dcil_dsl.cli.commands\n"
        "sys.argv = ['dcil', '--help']\n"
        "try:\n    dcil_dsl.cli.commands.main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'dcil_dsl.cli.verbs'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "extras = [name for name in sys.modules if name.startswith('dcil_dsl.extras')]\n"
        "assert not extras, extras\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# Words that no recipe of the project has.
MORE_WORDS = """language 1
let short = 1ep..2ep
prune Conv2d to uniform(50%) {
  granularity = weight
  penalty     = [square(kept, 1e-4), norm(pruned, 1e-4)]
}
prune Linear to latency(5, profile="speed.json")
prune Linear to nm(2, 4) { schedule = once(at=1ep) }
layers some = Conv2d
prune Conv2d to global(50%) {
  bounds   = [within(some, floor=10%)]
  schedule = linear(short)
}
mix {
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss model(dense)
  deploy sparse
}
data digits {
  augment = [pad_crop(2), flip(), random_resized_crop(32), rand_augment(), trivial_augment(),
             color_jitter(hue=0.1), erase(), mixup(0.2), cutmix(1.0)]
}
train {
  epochs    = 2ep
  optimizer = adamw(lr=0.1)
  lr        = RATE
}
"""


def test_every_word_is_read_without_torch(tmp_path):
    """`dcil check` of recipes that have all words together; torch cannot be imported."""
    for rate in ("constant()", "multistep(at=[1ep])"):
        (tmp_path / f"{rate[:5]}.prune").write_text(MORE_WORDS.replace("RATE", rate))
    files = [*(ROOT / "recipes").rglob("*.prune"), *tmp_path.glob("*.prune")]
    code = (
        "import sys, json, dataclasses\n"
        "sys.modules['torch'] = None\n"
        "from pydantic import BaseModel\n"
        "from dcil_dsl.lang import load\n"
        "from dcil_dsl.words.word import Word\n"
        "found = set()\n"
        "def walk(value):\n"
        "    if isinstance(value, Word):\n"
        "        found.add((value.place, value.called))\n"
        "    if isinstance(value, BaseModel):\n"
        "        value = dict(value)\n"
        "    elif dataclasses.is_dataclass(value):\n"
        "        value = vars(value)\n"
        "    if isinstance(value, dict):\n"
        "        value = list(value.values())\n"
        "    if isinstance(value, (list, tuple)):\n"
        "        for one in value:\n"
        "            walk(one)\n"
        "for file in sys.argv[1:]:\n"
        "    walk(load(file))\n"
        "print(json.dumps(sorted(found)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    from dcil_dsl.words.registry import own_words

    every = {(place, word) for place, words in own_words().items() for word in words}
    # The recipe has Bound in the place of `within`.
    assert every - set(map(tuple, json.loads(done.stdout))) == {("a bound", "within")}


def test_missing_data_are_reported_without_waiting_for_torch(tmp_path):
    code = (
        "import sys, dcil_dsl.cli.commands\n"
        "sys.argv = ['dcil', 'compile', sys.argv[1], '--model', 'torchvision:resnet50', "
        "'--train', 'imagenet', '--data', sys.argv[2]]\n"
        "try:\n    dcil_dsl.cli.commands.main()\n"
        "except SystemExit as end:\n    assert end.code == 2, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    recipe = str(ROOT / "recipes" / "resnet50.prune")
    subprocess.run([sys.executable, "-c", code, recipe, str(tmp_path)], check=True, cwd=ROOT)


def test_no_file_or_folder_has_a_name_that_says_nothing():
    names = {"utils", "helpers", "common", "base", "manager", "misc", "util", "helper", "core"}
    assert [file for file in SOURCES if file.stem in names or file.parent.name in names] == []


def test_a_folder_of_words_or_data_has_at_most_16_files():
    for folder in ("words", "data"):
        files = [file for file in (PACKAGE / folder).glob("*.py") if file.stem != "__init__"]
        assert len(files) <= 16, folder


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_ascii_short_and_says_what_it_is(file):
    text = file.read_text()
    assert text.isascii()
    assert max(map(len, text.splitlines()), default=0) <= 100
    assert len(text.splitlines()) <= 500
    if text.strip():
        assert ast.get_docstring(tree_of(file)), "no docstring at the head"


def test_at_most_20_lines_of_each_kind_are_exempt_from_layout_and_types():
    for mark in ("# fmt: skip", "type: ignore"):
        assert sum(file.read_text().count(mark) for file in FILES) <= 20, mark
    config = (ROOT / "pyproject.toml").read_text()
    assert "ignore_errors" not in config and "strict = true" in config


def test_a_class_name_is_used_once():
    names = [
        node.name
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.ClassDef)
    ]
    assert {name for name in names if names.count(name) > 1} == set()


def test_the_training_loop_has_no_nested_functions():
    tree = ast.parse((PACKAGE / "training" / "trainer.py").read_text())
    kinds = (ast.FunctionDef, ast.Lambda)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    nested = [n for f in functions for n in ast.walk(f) if n is not f and isinstance(n, kinds)]
    assert functions and nested == []


def test_no_code_runs_text_or_unpickles():
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), file
                if name == "torch.load":
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert keywords.get("weights_only") == "True", file


def test_the_words_of_the_language_are_these():
    from dcil_dsl.words.registry import own_words

    assert {place: " ".join(words) for place, words in own_words().items()} == {
        "a target": "uniform global nm erk lamp density below at_most each table sensitivity "
        "speedup latency",
        "a bound": "within",
        "a granularity": "weight filter channel head block",
        "a score": "magnitude l2 taylor movement gradient random",
        "a schedule": "cubic linear exponential iterative staged cyclic once constant",
        "a view": "masked full complement soft_threshold",
        "a teacher": "network ema",
        "a penalty": "square norm l1 group_lasso",
        "a parametrisation": "power",
        "a way to grow": "gradient random",
        "a loss": "cross_entropy binary_cross_entropy mse cosine kl model js",
        "a weighting of classes": "balanced",
        "an optimizer": "sgd adam adamw rmsprop lamb muon",
        "a group of weights": "group no_decay frozen",
        "a rule that ends the run": "early",
        "a learning rate over time": "constant multistep cosine polynomial linear exponential "
        "one_cycle plateau",
        "an integrator": "heun rk4 extrapolate implicit",
        "a mirror step": "ham",
        "an average of weights": "late_phase",
        "a balance of losses": "inverse_dirichlet",
        "an augmentation": "pad_crop flip random_resized_crop rand_augment trivial_augment "
        "color_jitter erase mixup cutmix",
    }


@pytest.mark.parametrize("word", ["taylor", "cubic", "erk", "lamp", "rk4", "mixup"])
def test_the_class_of_a_word_is_the_only_code_that_names_it(word):
    """One other file may write it: an example of an error, a recipe, or the tour."""
    written = re.compile(rf"\b{word}\b")
    kinds = (".py", ".pyi", ".md", ".txt", ".c")
    files = [file for file in PACKAGE.rglob("*") if file.suffix in kinds]
    named = [file for file in files if written.search(file.read_text())]
    code = [file for file in named if "diagnostics" not in file.parts and file.suffix == ".py"]
    assert len(code) == 1 and len(named) <= 2, named


def test_the_docstring_of_a_word_begins_with_its_usage():
    from dcil_dsl.words.registry import own_words

    words = [(word, cls) for table in own_words().values() for word, cls in table.items()]
    wrong = [word for word, cls in words if not re.match("`[^`]+`", cls.__doc__ or "")]
    assert wrong == []


def options_of_verbs() -> dict[str, set[str]]:
    from typer.main import get_command

    from dcil_dsl.cli.commands import app

    return {
        name: {
            option
            for parameter in command.params
            for option in [*parameter.opts, *parameter.secondary_opts]
            if option.startswith("-")
        }
        for name, command in get_command(app).commands.items()
    }


def test_the_options_of_compile_are_the_fields_of_run_options_and_its_own():
    from dcil_dsl.training.options import flags

    fields = {name for flag in flags().values() for name in (flag.name, flag.off) if name}
    own = {"--model", "--train", "--concise", "--steps-per-epoch"}
    assert options_of_verbs()["compile"] == fields | own


def test_no_verb_loses_an_option_that_others_rely_on():
    """An option may come; a name that is gone breaks somebody's script."""
    about_a_model = "--model --set --concise --steps-per-epoch"
    known = {
        "compile": "--model --train --data --out --resume --resume-anyway --weights --set --device "
        "--on-bad-image --on-nan --checkpoint-activations --evaluate-every --precision --workers "
        "--compile --no-compile --compile-mode --shard --seed --max-steps --quiet --concise "
        "--steps-per-epoch",
        "init": "--model --out",
        "import": "--out",
        "lsp": "",
        "check": f"{about_a_model} --output",
        "fmt": "--check --concise",
        "plan": f"{about_a_model} --json",
        "graph": about_a_model,
        "eval": "--path --data --device --workers --model --concise",
        "verify": f"{about_a_model} --recipe",
        "export": "--to --out --path --model --concise",
        "sensitivity": "--model --train --data --weights --batches --part --levels --target --json "
        "--set --device --workers --concise",
        "bench": "--json --engines --batch-sizes --threads --rounds --path --model --train --data "
        "--concise",
        "explain": about_a_model,
        "report": "--out",
        "sweep": "--model --train --vary --seeds --jobs --out --set --device",
    }
    found = options_of_verbs()
    assert {name: set(text.split()) - found.get(name, set()) for name, text in known.items()} == {
        name: set() for name in known
    }


def prune_blocks():
    readmes = [file for file in ROOT.rglob("README.md") if ".venv" not in file.parts]
    for file in sorted(readmes):
        text = file.read_text()
        for match in re.finditer(r"```prune\n(.*?)```", text, re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            yield pytest.param(match[1], id=f"{file.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("text", list(prune_blocks()))
def test_a_recipe_shown_in_a_readme_is_sound(text):
    from dcil_dsl.lang import loads

    loads(text, folder=ROOT / "recipes")
