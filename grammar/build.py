"""The step of the build that pyproject.toml cannot state: grammar and recipes go into the wheel.

In a checkout both lie at the top, as pages for readers; in the wheel they lie inside the package,
as dcil_dsl/grammar/prune.lark and dcil_dsl/recipes/. lang/tokens.py and lang/shipped.py look in
both places.
"""

from pathlib import Path

from setuptools.command.build_py import build_py

GRAMMAR, ITSELF = "grammar/prune.lark", "grammar/build.py"


def taken_along() -> list[str]:
    """The files that the wheel has, by their paths in the checkout."""
    recipes = (p for kind in ("prune", "json", "md") for p in Path("recipes").rglob(f"*.{kind}"))
    return [GRAMMAR, *sorted(path.as_posix() for path in recipes)]


class WithGrammar(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable install reads the checkout
            for name in taken_along():
                target = Path(self.build_lib, "dcil_dsl", name)
                self.mkpath(str(target.parent))
                self.copy_file(name, str(target))

    def get_source_files(self):
        """What a source distribution needs to build the wheel."""
        return [*super().get_source_files(), *taken_along(), ITSELF]
