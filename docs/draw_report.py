"""Draw the pictures of docs/how-to/reports.md: the page of `dcil report` in a browser.

    python docs/draw_report.py RUN

In:   a run folder; `chromium`, Pillow.
Out:  docs/report-light.png (1,400 pixels wide), docs/report-dark.png and docs/report-narrow.png
      (400 pixels wide), in 64 colours.
Not:  nothing is drawn by hand: each is the top of the page as the browser shows it.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
# name: width, height, colour scheme (1 is light)
SHOTS = {
    "report-light.png": (1400, 1100, 1),
    "report-dark.png": (1400, 1100, 0),
    "report-narrow.png": (400, 900, 1),
}


def shoot(page: Path, out: Path, width: int, height: int, scheme: int) -> None:
    """The top of the page. Headless windows are at least 500 wide: narrow ones show a frame."""
    frame = page.with_name("frame.html")
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" '
        f'style="border:0;width:{width}px;height:{height}px"></iframe>',
        encoding="utf-8",
    )
    subprocess.run(
        [
            shutil.which("chromium") or "chromium",
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={max(width, 500)},{height}",
            "--virtual-time-budget=5000",
            f"--screenshot={out}",
            (page if width >= 500 else frame).as_uri(),
        ],
        check=True,
        capture_output=True,
    )
    picture = Image.open(out).convert("RGB").crop((0, 0, width, height))
    picture.quantize(64, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "report.html"
        subprocess.run(
            [sys.executable, "-m", "dcil_dsl", "report", sys.argv[1], "--out", str(page)],
            check=True,
        )
        for file, (width, height, scheme) in SHOTS.items():
            shoot(page, HERE / file, width, height, scheme)


if __name__ == "__main__":
    main()
