"""What the wheel holds, what it needs, and that the README says what is so."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from support.toml import tomllib

from dcil_dsl.diagnostics.optional import TRAINING
from dcil_dsl.words.blocks import BLOCKS
from dcil_dsl.words.registry import own_words

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# The name to install -> the name to import, where they differ.
IMPORTED_AS = {"scikit-learn": "sklearn", "pytest-xdist": "xdist"}
# of torchvision, pydantic, rich, pytest-lsp, transformers, datasets
WITH_OTHERS = {"PIL", "pydantic_core", "typing_extensions", "pygments", "pytest_asyncio"}
WITH_OTHERS |= {"tokenizers", "pandas"}
OPTIONAL = {"lightning", "timm", "transformers", "flwr", "yaml", "pygls", "lsprotocol"}
OPTIONAL |= {"onnx", "onnxruntime", "onnxscript", "openvino", "executorch", "ethosu", "torchao"}
OPTIONAL |= {"zstandard", "datasets", "mlflow", "wandb", "trackio"}
OPTIONAL |= {"IPython"}  # in a notebook it is there
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "dcil_dsl/README.md",
    "recipes/README.md",
    "grammar/README.md",
    "docs/add_a_word.md",
]
REFERENCE = "".join(
    page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "language").glob("*.md"))
)
# Settings that are written without their names, and shown so.
SHOWN_UNNAMED = {"sparsity", "part", "weight", "share", "path", "layers", "height", "width", "p"}


def needed(requirements):
    names = [re.match(r"[\w-]+", line)[0] for line in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def imported_by(folder):
    """The top names of all imports, wherever in a file they stand."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "library":
                (name,) = node.args
                found.add(name.value.split(".")[0])
    return found


def test_every_folder_of_the_package_is_in_the_wheel():
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]
    assert found == {"include": ["dcil_dsl*"], "namespaces": False}
    folders = {file.parent for file in (ROOT / "dcil_dsl").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_grammar_is_put_into_the_wheel_where_the_parser_looks():
    commands = PROJECT["tool"]["setuptools"]["cmdclass"]
    assert commands == {"build_py": "grammar.build.WithGrammar"}
    text = (ROOT / "grammar" / "build.py").read_text(encoding="ascii")
    assert '"grammar/prune.lark"' in text and '"dcil_dsl", name' in text
    assert (ROOT / "grammar" / "prune.lark").is_file()
    assert not (ROOT / "dcil_dsl" / "grammar").exists()  # the checkout has one copy


def test_an_editable_install_is_a_path_that_type_checkers_follow():
    """setuptools writes an import hook unless the root is the one folder that it maps."""
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"": "."}


def test_what_is_installed_is_what_is_imported():
    found = imported_by("dcil_dsl") - set(sys.stdlib_module_names) - {"dcil_dsl"}
    project = PROJECT["project"]
    installed = needed(project["dependencies"] + project["optional-dependencies"]["train"])
    assert found - WITH_OTHERS - OPTIONAL <= installed
    assert installed - found == {"tensorboard"}  # torch.utils.tensorboard needs it
    assert set(TRAINING) - WITH_OTHERS == needed(project["optional-dependencies"]["train"])


def test_what_the_tests_import_comes_with_the_test_extra():
    folders = ("tests", "benchmarks")
    own = {file.stem for folder in folders for file in (ROOT / folder).rglob("*.py")} | {"support"}
    own |= {"dcil_dsl", "grammar"}
    found = imported_by("tests") - set(sys.stdlib_module_names) - own - {"tomli"}
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    assert "dcil-dsl[train]" in extras["test"]
    brought = needed(project["dependencies"] + extras["test"] + extras["train"])
    assert found - WITH_OTHERS - OPTIONAL - {"pytest_lsp"} <= brought  # of .ci/extras lsp


def test_the_picture_is_of_the_graph_that_the_compiler_makes():
    spec = importlib.util.spec_from_file_location("draw_graph", ROOT / "docs" / "draw_graph.py")
    draw_graph = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_graph)
    drawn = draw_graph.draw(draw_graph.compiled())
    assert drawn == (ROOT / "docs" / "graph.svg").read_text(encoding="ascii")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert targets
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_every_recipe_stands_in_the_table_of_recipes():
    recipes = ROOT / "recipes"
    table = (recipes / "README.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([\w/]+\.prune)\)", table))
    assert {str(f.relative_to(recipes)) for f in recipes.rglob("*.prune")} == links


def test_the_reference_has_every_word_and_every_setting():
    words, settings = set(), set()
    for table in (*own_words().values(), BLOCKS):
        words |= set(table)
        settings |= {name for word in table.values() for name in word.settings()}
    shown = words | settings - SHOWN_UNNAMED
    missing = {x for x in shown if not re.search(rf"\b{x}\b", REFERENCE)}
    assert missing == set()
