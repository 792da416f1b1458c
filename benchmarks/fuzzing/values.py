"""Values that are hostile: texts for options by their type, paths, and Python's values."""

from __future__ import annotations

import types
from enum import StrEnum
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from inference.runs.values import Several

PATHS = {
    *("root", "out", "features", "weights", "network_weights", "teacher_root", "teacher_weights", "student_weights", "cache"),
    *("support", "query", "run", "config", "resume"),
}
"""Options that name a file or folder."""
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=12).filter(
    lambda word: not any(0xD800 <= ord(c) < 0xDC80 or 0xDCFF < ord(c) <= 0xDFFF for c in word)
)
"""What a command line may hold: surrogates only where they stand for bytes that are no UTF-8."""
COUNTS = ["-1", "0", "1", "2", "3", "7", "64", "1000000000", "2147483648", "9223372036854775808", "18446744073709551616"]
LIKE_COUNTS = ["1e3", "1.5", "1.0", "nan", "inf", "", " ", "1_0", "0x10", "١", "½", "true", "null", "~", "[1]", "{a: 1}", "1,2"]
WHOLE = st.sampled_from([*COUNTS, "9" * 400, *LIKE_COUNTS, "+3", "'3'", "3 4", "--3"]) | st.integers().map(str)
FLOATS = ["-1", "0", "-0.0", "1", "1e-300", "5e-324", "1e-30", "1e30", "1e300", "1e308", "1e400", "nan", "NaN", "inf", "-inf"]
NUMBERS = st.sampled_from(
    [*FLOATS, "", "1,5", "1e", "0x1p3", ".5", "1_0.5", "true", "null", "[0.1]", "{}", "1d3", "٣", "0.1.2"]
) | st.floats().map(str)
TRUTH = st.sampled_from(["yes", "no", "1", "0", "TRUE", "", "null", "2", "maybe", "[]", "true,false", "on"])
FOUND = [".", "..", "/", "~", "nowhere", "nowhere/at/all", "features.safetensors", "images", "images.zip", "runs/sib", "runs"]
DEVICES = ["/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/1/environ"]
MADE = [
    "pipe",
    "device",
    "loop",
    "plug",
    "empty",
    "empty.zip",
    "locked",
    "config.yaml",
    "images/train/train0/0.png",
    "a,b",
    "*",
    "[",
    "-",
]
FILES = [
    "network.pth",
    "DEFAULT",
    "bnn.safetensors",
    "sib.safetensors",
    "runs/vid/metrics.json",
    "s3://x/y",
    "http://localhost:9/x",
    "$HOME",
]
PLACES = st.sampled_from(["", " ", *FOUND, *DEVICES, "x" * 300, "d/" * 3000, "a\nb", "é", "\udcff\udcfe", *MADE, *FILES])
EXTRA = (
    *(("pipe", "pipe", 0), ("device", "device", 0), ("loop", "loop", 0), ("plug", "plug", 0), ("empty", "folder", 0)),
    *(("empty.zip", "text", 1), ("locked", "unreadable_folder", 0)),
)
"""What stands at some of these places."""
ODD = ["--", "-", "--=", "---x", "--x", "--x=1", "--help=1", "-h", "--print-config", "--print-config=x", "--config"]
"""Words that are no options."""
SEVERAL = ["1", "2", "0.1", "1e308", "all", "student", "kd", "0.5*kd+2*vid", "1e300*vid", "*", "a:b"]
OTHERS = [
    "conv4-4",
    "conv4-0",
    "conv4-",
    "wrn-1-1",
    "mlp",
    "resnet18",
    "lenet",
    "glyphs",
    "folder",
    "mnist",
    "5-20",
    "20-5",
    "conv4-99999999",
]


def hostile(name: str, hint: Any) -> SearchStrategy[str]:
    """Values of an option of type ``hint``, as text: some it takes, most not."""
    if name in PATHS:
        return PLACES | TEXT
    if get_origin(hint) in (Union, types.UnionType):
        return hostile(name, next(part for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is Literal:
        return st.sampled_from([str(one) for one in get_args(hint)]) | words_like(map(str, get_args(hint)))
    if hint is bool:
        return TRUTH
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(list(map(str, hint))) | words_like(hint)
    if isinstance(hint, type) and issubclass(hint, Several):
        known = getattr(hint, "known", ()) or SEVERAL
        return st.lists(st.sampled_from(list(map(str, known))) | NUMBERS | WHOLE | TEXT, max_size=4).map(",".join)
    if isinstance(hint, type) and issubclass(hint, int):
        return WHOLE
    if isinstance(hint, type) and issubclass(hint, float):
        return NUMBERS
    return st.sampled_from(OTHERS) | TEXT | WHOLE


def words_like(known: Any) -> SearchStrategy[str]:
    """Words that are nearly one of the ``known`` ones."""
    names = list(map(str, known))
    return (
        st.sampled_from([*map(str.upper, names), *(name[:-1] for name in names), ",".join(names), "", "null", "0", "[]"]) | TEXT
    )
