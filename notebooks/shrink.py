"""Re-encode the pictures of executed notebooks with a palette, so that the web shows them: ``python notebooks/shrink.py``."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

WIDTH, COLOURS = 1000, 128


def smaller(encoded: str) -> str:
    """A PNG in base64, at most :data:`WIDTH` wide and with few colours; itself where that is no gain."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    # the usual choice of colours, by how often they occur, would lose those of thin lines
    palette = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(file := io.BytesIO(), "png", optimize=True)
    return min(base64.b64encode(file.getvalue()).decode(), encoded, key=len)


def main() -> None:
    """All notebooks of this folder, in place."""
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        notebook: Any = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if "image/png" in output.get("data", {}):
                    output["data"]["image/png"] = smaller(output["data"]["image/png"])
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()
