"""Small pictures on disk, whose red tells their split, class and number."""

from pathlib import Path

import pytest
from PIL import Image

from data.items import SPLITS


def save_image(path: Path, value: int = 0, size: tuple[int, int] = (20, 24), mode: str = "RGB", suffix: str = ".png") -> None:
    """A picture of one colour: red is ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 10, 200)).save(path.with_suffix(suffix))


def red(split: str, label: int, number: int = 0) -> int:
    """The red of image ``number`` of class ``label``; JPEG moves it by less than 5."""
    return 80 * SPLITS.index(split) + 20 * label + number


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives are unpacked in the test's own folder."""
    monkeypatch.setenv("SIBYL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``{train,val,test}/<split><c>/<i>``: three, two and two classes of four images, PNG and JPEG."""
    root = tmp_path / "tree"
    for split, classes in {"train": 3, "val": 2, "test": 2}.items():
        for c in range(classes):
            for i in range(4):
                save_image(root / split / f"{split}{c}" / f"{i}", red(split, c, i), suffix=".jpg" if i % 2 else ".png")
    return root
