"""The one step of the build that pyproject.toml cannot state: the grammar goes into the wheel.

In a checkout the grammar lies at the top, as a page for readers; in the wheel it lies inside the
package, as dcil_dsl/grammar/prune.lark. lang/tokens.py looks in both places.
"""

from pathlib import Path

from setuptools.command.build_py import build_py

GRAMMAR, ITSELF = "grammar/prune.lark", "grammar/build.py"


class WithGrammar(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable install reads the checkout
            target = Path(self.build_lib, "dcil_dsl", GRAMMAR)
            self.mkpath(str(target.parent))
            self.copy_file(GRAMMAR, str(target))

    def get_source_files(self):
        """What a source distribution needs to build the wheel."""
        return [*super().get_source_files(), GRAMMAR, ITSELF]
