"""Golden files: what a stage prints, beside the tests; `pytest --update-golden` rewrites them."""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "golden"


def check(request, name, text):
    """`text` equals tests/golden/<name>.txt, byte for byte."""
    path = FOLDER / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing: make it with --update-golden and read it"
    assert text == path.read_text()
