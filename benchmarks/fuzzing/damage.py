"""What is done to a sound file: each way has a name, and is the same for the same number."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 0.5, 2**31, 2**63, 10**400, -(10**9), 1e300, -1e300, float("nan"), float("inf")),
    *("", " ", "x", "nan", "1e300", "\n", "é", "\udc80", "x" * 5000, "../../x", "/dev/zero", "!!python/name:os.system"),
    *([], {}, [[]], [None], [1, "x"], {"x": None}, {"x": {"x": []}}, [0] * 50, "[" * 50),
)
"""Values that stand where others are due."""


def overwrite(file: Path, content: bytes) -> None:
    """Put ``content`` in place of what a path names, whatever that is."""
    remove(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def remove(file: Path) -> None:
    """Delete a file or folder, where there is one."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def nodes(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all parts of a JSON value."""
    found = [path]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        found += nodes(part, (*path, name))
    return found


def change(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part replaced, taken away or repeated."""
    *path, last = chance.choice(nodes(value)[1:] or [(None,)])
    if last is None:
        return chance.choice(HOSTILE)
    owner = value
    for name in path:
        owner = owner[name]
    how = chance.randrange(8)
    if how == 0:
        del owner[last]
    elif how == 1 and isinstance(owner, dict):
        owner[chance.choice(("x", "", last + "x" if isinstance(last, str) else "y"))] = owner.pop(last)
    else:
        owner[last] = chance.choice(HOSTILE)
    return value


def changed_json(file: Path, chance: random.Random) -> None:
    """One value of a JSON document."""
    with suppress(ValueError, OSError):
        overwrite(file, json.dumps(change(json.loads(file.read_text()), chance)).encode("utf-8", "surrogatepass"))


def changed_yaml(file: Path, chance: random.Random) -> None:
    """One value of a YAML document."""
    with suppress(ValueError, OSError, yaml.YAMLError):
        overwrite(file, json.dumps(change(yaml.safe_load(file.read_text()), chance)).encode("utf-8", "surrogatepass"))


def changed_header(file: Path, chance: random.Random) -> None:
    """One value of a safetensors file's header, or of what its metadata say in JSON."""
    content = file.read_bytes()
    with suppress(ValueError, struct.error, AttributeError):
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        metadata = header.get("__metadata__", {})
        if metadata and chance.random() < 0.6:
            name = chance.choice(sorted(metadata))
            metadata[name] = json.dumps(change(json.loads(metadata[name]), chance))
        else:
            header = change(header, chance)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        length = chance.choice((len(text),) * 8 + (0, 2**63, len(text) - 1))
        overwrite(file, struct.pack("<Q", length) + text + content[8 + size :])


def changed_tensor(file: Path, chance: random.Random) -> None:
    """Numbers of a safetensors file: NaN, infinite, huge or negative ones at some place, or everywhere."""
    content = bytearray(file.read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    start = 8 + size
    if len(content) - start < 8:
        return
    number = struct.pack("<f", chance.choice((float("nan"), float("inf"), 1e38, -1e38, 0.0, -1.0)))
    if chance.random() < 0.5:
        content[start:] = (number * (len(content) // 4))[: len(content) - start]
    else:
        place = start + 4 * chance.randrange((len(content) - start) // 4)
        content[place : place + 4] = number
    overwrite(file, bytes(content))


def flipped(file: Path, chance: random.Random) -> None:
    """A few bits."""
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 3, 30))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    overwrite(file, bytes(content))


def flipped_start(file: Path, chance: random.Random) -> None:
    """A few bytes among the first hundred, where formats say what follows."""
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 2, 5))):
        if content:
            content[chance.randrange(min(len(content), 100))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    overwrite(file, bytes(content))


def truncated(file: Path, chance: random.Random) -> None:
    """The end is missing."""
    content = file.read_bytes()
    overwrite(file, content[: chance.randrange(len(content) or 1)])


def longer(file: Path, chance: random.Random) -> None:
    """Something follows."""
    overwrite(file, file.read_bytes() + chance.randbytes(chance.choice((1, 100, 5000))))


def noise(file: Path, chance: random.Random) -> None:
    """Nothing but noise."""
    overwrite(file, chance.randbytes(chance.choice((1, 8, 100, 5000))))


def nested(file: Path, chance: random.Random) -> None:
    """Thousands of brackets."""
    overwrite(file, chance.choice((b"[", b'{"x":', b"- ", b"{x: ")) * chance.choice((1000, 200_000)))


def text(file: Path, chance: random.Random) -> None:
    """Other text, none that it should be."""
    overwrite(
        file,
        chance.choice(
            (
                b"\0" * 40,
                b"\xff\xfe\x00",
                b"\xe9t\xe9: 1",
                b"\n",
                b"null",
                b"[]",
                b"{}",
                b"1",
                b'"x"',
                b"a: &a [*a]",
                b"NaN",
                b"%PDF-1",
            )
        ),
    )


def bomb(file: Path, chance: random.Random) -> None:
    """YAML whose aliases stand for billions of values."""
    lines = [b"x0: &x0 [1,1,1,1,1,1,1,1,1]"] + [
        b"x%d: &x%d [%s]" % (i, i, b",".join([b"*x%d" % (i - 1)] * 9)) for i in range(1, 12)
    ]
    overwrite(file, b"\n".join(lines))


def pipe(file: Path, chance: random.Random) -> None:
    """A pipe that nobody writes to."""
    remove(file)
    os.mkfifo(file)


def device(file: Path, chance: random.Random) -> None:
    """A link to a device without an end, or to an empty one."""
    remove(file)
    file.symlink_to(chance.choice(("/dev/zero", "/dev/null")))


def loop(file: Path, chance: random.Random) -> None:
    """A link to itself."""
    remove(file)
    file.symlink_to(file.name)


def plug(file: Path, chance: random.Random) -> None:
    """A socket."""
    remove(file)
    with suppress(OSError), socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


def folder(file: Path, chance: random.Random) -> None:
    """A folder in the place of a file."""
    remove(file)
    file.mkdir(parents=True)


def gone(file: Path, chance: random.Random) -> None:
    """Nothing."""
    remove(file)


def image(file: Path, chance: random.Random) -> None:
    """An image of another kind, mode or size, whatever the name says."""
    mode = chance.choice(("1", "L", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA"))
    kind = chance.choice(("png", "tiff", "bmp", "gif", "jpeg", "webp", "ppm", "pcx", "eps"))
    size = chance.choice(((1, 1), (1, 3000), (3000, 1), (40, 40)))
    made = io.BytesIO()
    with suppress(OSError, ValueError, KeyError, AttributeError):
        Image.new(mode, size, 200 if mode != "F" else 0.5).save(made, kind)  # type: ignore[arg-type]
    overwrite(file, made.getvalue())


def huge_image(file: Path, chance: random.Random) -> None:
    """A header that promises billions of pixels."""
    width, height = chance.choice(((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (20_000, 20_000), (0, 0)))
    start = b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
    overwrite(file, start + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(40))


def odd_archive(file: Path, chance: random.Random) -> None:
    """A zip archive whose names lead out, repeat, clash, or hold what no file system takes."""
    name = chance.choice(
        ("../x.png", "/x.png", "a/../../x.png", "C:\\x.png", "a\0b.png", "a" * 300 + ".png", "é/ü.png", "a//b.png", "", "a/",
         "/".join(["d"] * 500) + "/x.png", "a/b.png", "train/x\n/y.png", "."),
    )  # fmt: skip
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))) as archive:
        for each in (name, chance.choice((name, "a", "train/a/b.png"))):
            entry = zipfile.ZipInfo("x.png")
            entry.filename, entry.external_attr = each, chance.choice((0, 0o120777 << 16, 0o644 << 16, 0o010644 << 16))
            with suppress(ValueError, UnicodeError):
                archive.writestr(entry, chance.choice((b"", b"/etc", bytes(10**6))))
    overwrite(file, made.getvalue())


def another_runs(file: Path, chance: random.Random) -> None:
    """The file of the same kind of another run."""
    top = next((place for place in file.parents if place.name == "runs"), None)
    others = [] if top is None else sorted(other for other in top.rglob(f"*{file.suffix}") if other != file and other.is_file())
    if others:
        overwrite(file, chance.choice(others).read_bytes())


def unreadable(file: Path, chance: random.Random) -> None:
    """No permissions."""
    with suppress(OSError):
        file.chmod(0)


Way = Callable[[Path, random.Random], None]
ANY: tuple[Way, ...] = (
    gone,
    flipped,
    flipped_start,
    truncated,
    longer,
    noise,
    text,
    pipe,
    device,
    loop,
    plug,
    folder,
    unreadable,
)
"""Ways that any file may be damaged."""
STRUCTURED: dict[str, tuple[Way, ...]] = {
    ".json": (changed_json, changed_json, changed_json, nested),
    ".yaml": (changed_yaml, changed_yaml, changed_yaml, nested, bomb),
    ".safetensors": (changed_header, changed_header, changed_header, changed_tensor),
    ".zip": (odd_archive, odd_archive),
    ".png": (image, image, huge_image),
    ".csv": (),
    ".ckpt": (),
}
"""Ways that take a format's own structure, by suffix."""
WAYS = {way.__name__: way for way in (*ANY, *(way for ways in STRUCTURED.values() for way in ways), another_runs)}


READING = (flipped, flipped_start, truncated, longer, changed_header, changed_tensor, changed_json, changed_yaml)
"""Ways that need a file to begin with, which an earlier damage may have taken away."""


def damage(file: Path, way: str, number: int) -> None:
    """Do it."""
    if file.is_file() or WAYS[way] not in READING:
        WAYS[way](file, random.Random(number))
