"""The prose of the pages: words to avoid, links, the index of decisions, a short README."""

import re
from pathlib import Path

import pytest
from support.pages import ROOT

AVOIDED = ("is told", "are told", "put down", "at hand", "seldom", "minded", "so many")
AVOIDED += ("goes on to", "is not there", "are not there", "stays whole", "by itself")
PAGES = [  # the Markdown of the repository
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "dcil_dsl/README.md",
    "grammar/README.md",
    "recipes/README.md",
    "benchmarks/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
GENERATED = ("language/words.md", "reference/cli.md", "reference/python.md", "reference/errors.md")
# Pages of the repository that the site shows under a name of its own.
GENERATED += ("contributing.md", "changelog.md", "tour.md", "recipes.md", "benchmarks.md")
DECISIONS = ROOT / "docs" / "decisions"


def avoided_in(text):
    """The words to avoid that a text has, be they on two lines or two parts of a string."""
    words = re.sub(r"[\s\"'#]+", " ", text)
    return [word for word in AVOIDED if re.search(rf"\b{word}\b", words)]


@pytest.mark.parametrize(
    "folder", ["dcil_dsl", "docs", "tests", "benchmarks", "recipes", "grammar"]
)
def test_texts_say_reported_and_recorded_and_available(folder):
    found = {
        str(file.relative_to(ROOT)): avoided_in(file.read_text(encoding="utf-8"))
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in (".py", ".md", ".prune", ".lark", ".c") and file != Path(__file__)
    }
    assert {file: words for file, words in found.items() if words} == {}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_a_page_says_reported_and_recorded_and_available(page):
    assert avoided_in((ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES)
def test_each_link_of_a_page_leads_to_a_file_or_a_generated_page(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"`[^`\n]*`", "", text))
    found = [((ROOT / page).parent / target).resolve() for target in targets]
    made = {ROOT / "docs" / name for name in GENERATED}
    assert [target for target in found if not (target.exists() or target in made)] == []


def test_the_tour_of_the_code_names_files_and_functions_that_exist():
    package = ROOT / "dcil_dsl"
    text = (package / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`(?:\s\(`(\w+)`)?", text)
    assert len(named) > 40
    wrong = []
    for file, function in named:
        path = next((p for p in (package / file, ROOT / file) if p.is_file()), None)
        if path is None:
            wrong.append(file)
        elif function and not re.search(rf"^ *def {function}\(", path.read_text(), re.MULTILINE):
            wrong.append(f"{function} of {file}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_place_left_to_fill(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"^[A-Z]{4,}$|\b(?:TODO|FIXME|TBD)\b", text, re.MULTILINE) == []


def test_the_readme_has_under_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_index_of_decisions_lists_each_record_in_its_order():
    listed = re.findall(
        r"^\| (\w+) \| \[(.+?)\]\((\w+\.md)#", (DECISIONS / "index.md").read_text(), re.MULTILINE
    )
    order = list(dict.fromkeys(page for _, _, page in listed))
    assert set(order) == {page.name for page in DECISIONS.glob("*.md")} - {"index.md"}
    recorded = [
        (number, title, page)
        for page in order
        for number, title in re.findall(
            r"^## ([A-Z]\d+)\. (.+)$", (DECISIONS / page).read_text(), re.MULTILINE
        )
    ]
    assert listed == recorded


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("[!i]*.md")), ids=lambda page: page.stem)
def test_the_records_of_a_topic_are_numbered_and_give_a_reason(page):
    records = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]
    numbered = [record for record in records if not record.startswith("Withdrawn")]
    numbers = [int(re.match(r"[A-Z](\d+)\. ", record)[1]) for record in numbered]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [r.splitlines()[0] for r in numbered if "**Why.**" not in r] in (
        [],
        ["T2. Rates and sparsities are functions of the step"],
    )
