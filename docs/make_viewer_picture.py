"""Draws docs/images/viewer.png: the page of `maps.to_html`, as a browser shows it.

python docs/make_viewer_picture.py  # needs chromium
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import lvlm_attn as la
from lvlm_attn import toy

PICTURE = Path(__file__).parent / "images" / "viewer.png"
SIZE = "1180,860"


def main() -> None:
    """Records the bare model and VHR on one scene, and takes a picture of the page."""
    model, processor = la.load("toy")
    runs = []
    for methods in ([], [la.VHR()]):
        with la.wrap(model, *methods, la.record(sinks=True), processor=processor) as lvlm:
            lvlm.generate(
                images=[toy.scenes("test")[0].image],
                prompts=["Describe this image."],
                max_new_tokens=40,
                do_sample=False,
            )
            runs.append(lvlm.maps)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("There is no chromium to take the picture with; install Debian's chromium.")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "map.html"
        runs[0].to_html(page, intervened=runs[1], word="car")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
        ]
        command = [browser, *flags, f"--user-data-dir={folder}/profile", f"--window-size={SIZE}"]
        subprocess.run(
            [*command, f"--screenshot={PICTURE}", page.as_uri()], check=True, capture_output=True, timeout=120
        )
    print(PICTURE)


if __name__ == "__main__":
    main()
