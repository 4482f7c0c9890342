"""Words of other packages: read, refused, planned, computed, and the same again later."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.outside_package import WORDS, forget, install, remove
from support.tiny_job import NET, RECIPE, call

import dcil_dsl as dcil
from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.words import registry
from dcil_dsl.words.registry import to_record

ROOT = Path(__file__).parent.parent
USES = RECIPE.replace('title = "two layers" }', 'uses = ["my-words"] }')
SCORED = USES.replace("refresh  = 2 steps", "refresh = 2 steps  score = bounded(limit=0.05)")


@pytest.fixture
def package(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    yield
    forget("my_words")


def told(text):
    with pytest.raises(RecipeError) as error:
        dcil.loads(text)
    return [(d.code, d.span.line, d.message, d.help) for d in error.value.diagnostics]


def line_of(text, part):
    return text[: text.index(part)].count("\n") + 1


# -- reading -------------------------------------------------------------------------------------


def test_a_word_is_known_where_the_recipe_uses_its_package(package):
    recipe = dcil.loads(SCORED)
    (rule,) = recipe.rules
    assert rule.score.limit == 0.05
    origin = rule.score.origin
    assert (origin.word, origin.package, origin.version) == ("bounded", "my-words", "1.2")


def test_a_word_of_a_package_that_is_installed_and_not_used_runs_nothing(package):
    code, line, message, help = told(SCORED.replace('uses = ["my-words"]', 'title = "x"'))[0]
    assert (code, line) == ("E210", line_of(SCORED, "bounded"))
    assert message == "`bounded` is not a score"
    assert help == '`uses = ["my-words"]` in the block `recipe` brings it'
    assert "my_words" not in sys.modules


def test_a_package_that_is_missing_is_named_where_the_recipe_names_it():
    assert told(SCORED) == [
        ("E241", 3, "the package `my-words` is not installed", "pip install my-words")
    ]


def test_a_package_without_words_is_reported():
    ((code, _, message, _),) = told(USES.replace("my-words", "pydantic"))
    assert code == "E241" and "declares no words" in message


def test_a_name_without_quotes_is_no_package(package):
    text = USES.replace('"my-words"', "pydantic")
    assert [code for code, *_ in told(text)] == ["E206"]


@pytest.mark.parametrize("word", ["magnitude", "kl", "masked", "js", "heun", "square"])
def test_a_package_cannot_give_a_word_of_the_language(word, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, declared={word: "my_words:Bounded"})
    ((code, line, message, _),) = told(USES)
    assert (code, line) == ("E242", 3)
    assert message == f"`{word}` of my-words 1.2 is a word of the language"


def test_two_packages_with_one_word_are_refused(package, tmp_path, monkeypatch):
    install(
        tmp_path,
        monkeypatch,
        name="other",
        module="other_words",
        declared={"bounded": "other_words:Bounded"},
    )
    ((code, _, message, _),) = told(USES.replace('["my-words"]', '["my-words", "other"]'))
    assert code == "E242"
    assert message == "other and my-words both have a word `bounded`"


@pytest.mark.parametrize(
    "place, fact",
    [
        ("my_words:Nothing", "cannot be imported: AttributeError"),
        ("no_such_module:Bounded", "cannot be imported: ModuleNotFoundError"),
        ("pathlib:Path", "is not a word: pathlib:Path is not a subclass"),
        ("my_words:Unfinished", "does nothing yet: my_words:Unfinished has no `combine`"),
    ],
)
def test_a_word_that_is_declared_wrongly_is_reported_where_it_is_used(
    place, fact, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch, declared={"bounded": place})
    ((code, line, message, _),) = told(SCORED)
    assert (code, line) == ("E243", line_of(SCORED, "bounded"))
    assert fact in message


def test_settings_that_no_plan_can_hold_are_refused(tmp_path, monkeypatch):
    text = WORDS.replace("limit: float = 0.1", "limit: object = {}")
    install(tmp_path, monkeypatch, text=text)
    ((code, _, message, _),) = told(SCORED.replace("limit=0.05", "limit=5ep"))
    assert code == "E243"
    assert message == "`limit` of `bounded` is a time in epochs, which no plan can hold"


def test_a_word_in_the_wrong_place_and_a_wrong_setting_are_reported(package):
    assert told(SCORED.replace("bounded(limit=0.05)", "midpoint()"))[0][2] == (
        "`midpoint` is an integrator, not a score"
    )
    assert told(SCORED.replace("limit=0.05", "limits=0.05"))[0][::3] == (
        "E212",
        "did you mean `limit`?",
    )
    assert told(SCORED.replace("limit=0.05", "limit=5%"))[0][2] == (
        "`limit` of `bounded` is a number, not a percentage"
    )


def test_a_path_that_a_word_names_has_to_be_declared(package):
    loss = "loss cross_entropy(dense)\n  loss distance(sparse, other=dens)"
    ((code, line, message, help),) = told(USES.replace("loss cross_entropy(dense)", loss))
    assert (code, message, help) == ("E216", "no path is named `dens`", "did you mean `dense`?")


def test_checking_a_recipe_with_a_word_loads_no_torch(package, tmp_path):
    (tmp_path / "x.prune").write_text(SCORED)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'my-words')!r})\n"
        "from dcil_dsl.lang import load\nload(sys.argv[1])\n"
        "assert 'my_words' in sys.modules and 'torch' not in sys.modules\n"
    )
    file = str(tmp_path / "x.prune")
    subprocess.run([sys.executable, "-c", code, file], check=True, cwd=ROOT)


def test_a_loss_that_names_no_path_is_refused(tmp_path, monkeypatch):
    text = WORDS.replace("path: PathName", "path: str = ''").replace(
        "other: PathName", "other: str = ''"
    )
    install(tmp_path, monkeypatch, text=text)
    loss = "loss cross_entropy(dense)\n  loss distance()"
    ((code, _, message, _),) = told(USES.replace("loss cross_entropy(dense)", loss))
    assert (code, message) == ("E243", "`distance` names no path, so nothing learns from it")


# -- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def run(package, tmp_path, monkeypatch):
    """One epoch of two, in a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.prune").write_text(SCORED)
    (tmp_path / "net.py").write_text(NET)
    job = [
        "compile",
        "tiny.prune",
        "--model",
        "net.py:Net",
        "--train",
        "synthetic",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--out",
        "run",
        "--quiet",
    ]
    assert call(*job, "--max-steps", "2") == 0
    return job


def test_a_plan_names_the_package_and_its_version(run, tmp_path):
    plan = dcil.Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert to_record(plan.groups[0].score) == {
        "word": "bounded",
        "package": "my-words",
        "version": "1.2",
        "settings": {"average": None, "limit": 0.05},
    }
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["versions"]["my-words"] == "1.2"


def test_a_run_without_its_package_is_refused_by_name(run, tmp_path, monkeypatch, capsys):
    remove(tmp_path, monkeypatch)
    assert call(*run, "--resume") == 1
    told = capsys.readouterr().err
    assert "tiny.prune:3:23: error[E241]: the package `my-words` is not installed" in told
    assert call("eval", "run", "--model", "net.py:Net") == 2
    told = capsys.readouterr().err
    assert "`bounded` is a word of my-words 1.2: the package `my-words` is not installed" in told
    assert 'pip install "my-words==1.2"' in told


def test_another_version_neither_resumes_nor_evaluates_a_run(run, tmp_path, monkeypatch, capsys):
    install(tmp_path, monkeypatch, version="1.3")
    assert call(*run, "--resume") == 2
    told = capsys.readouterr().err
    assert 'groups[0].score.version: "1.2" in the run, "1.3" now' in told
    assert call("eval", "run", "--model", "net.py:Net") == 2
    told = capsys.readouterr().err
    assert "`bounded` was planned with my-words 1.2, and 1.3 is installed" in told


def test_a_run_with_its_package_resumes_and_is_evaluated(run, capsys):
    assert call(*run, "--resume") == 0
    assert call("eval", "run", "--model", "net.py:Net") == 0


# -- the page that shows how -----------------------------------------------------------------------


def blocks(kind):
    text = (ROOT / "docs" / "add_a_word.md").read_text()
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def bounded_masks(recipe):
    """Of a linear layer without and with ties at the limit: the masks that the recipe makes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False))
    plan = dcil.resolve(recipe, model, steps_per_epoch=4)
    dual = dcil.compile(plan, model)
    dual.begin_step(0)
    return plan, model[0].weight.detach(), dual.masks["0.weight"]


def test_the_page_about_a_package_tells_the_truth(tmp_path, monkeypatch):
    from support.toml import tomllib

    (code,), (project,), (recipe,) = blocks("python"), blocks("toml"), blocks("prune")
    assert len(code.split("class ")[1].splitlines()) + len(project.splitlines()) <= 20
    project = tomllib.loads(project)["project"]
    install(
        tmp_path,
        monkeypatch,
        name=project["name"],
        version=project["version"],
        module="my_scores",
        text=code,
        declared=project["entry-points"]["dcil.words"],
    )
    recipe = recipe.replace("Conv2d, Linear", "Linear").replace("0.05", "0.3")
    plan, weight, mask = bounded_masks(dcil.loads(recipe))
    assert mask.sum() == 10
    assert set(weight[mask].abs().clamp(max=0.3).tolist()) == set(
        weight.abs().clamp(max=0.3).flatten().sort(descending=True).values[:10].tolist()
    )
    assert "score bounded(limit=0.3) of my-scores 1.0" in dcil_plan(plan)
    forget("my_scores")


@pytest.fixture
def own_word(tmp_path, monkeypatch):
    """The class of the page, in a module of the folder of words."""
    import dcil_dsl.words

    (code,) = blocks("python")
    (tmp_path / "bounded.py").write_text(code)
    monkeypatch.setattr(dcil_dsl.words, "__path__", [*dcil_dsl.words.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "OWN", (*registry.OWN, "bounded"))
    registry.own_words.cache_clear()
    yield
    monkeypatch.undo()
    registry.own_words.cache_clear()
    forget("dcil_dsl.words.bounded")


def test_the_page_about_this_program_tells_the_truth(own_word):
    (recipe,) = blocks("prune")
    recipe = recipe.replace('uses = ["my-scores"]', 'title = "ours"')
    plan, _, mask = bounded_masks(dcil.loads(recipe.replace("Conv2d, Linear", "Linear")))
    assert mask.sum() == 10
    assert plan.groups[0].score.origin is None


def test_a_class_in_the_folder_of_words_is_all_that_a_new_word_takes(own_word, tmp_path):
    """A recipe with it checks, plans, compiles, trains, stores and resumes."""
    text = SCORED.replace('uses = ["my-words"]', 'title = "ours"')
    (tmp_path / "tiny.prune").write_text(text)
    (tmp_path / "net.py").write_text(NET)
    assert call("check", tmp_path / "tiny.prune") == 0
    own = [str(tmp_path / "tiny.prune"), "--model", f"{tmp_path}/net.py:Net"]
    assert call("plan", *own) == 0
    run = [
        *own,
        "--train",
        "synthetic",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--quiet",
        "--out",
        tmp_path / "run",
    ]
    assert call("compile", *run, "--max-steps", "2") == 0
    assert call("compile", *run, "--resume", "--max-steps", "3") == 0
    plan = dcil.Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert to_record(plan.groups[0].score)["word"] == "bounded"


def dcil_plan(plan):
    from dcil_dsl.plan.show import show_plan

    return show_plan(plan)
