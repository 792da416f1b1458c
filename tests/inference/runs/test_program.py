"""A command's name for itself."""

import pytest

from inference.runs.program import program


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("/somewhere/bin/sibyl-sib", "sibyl-sib"),
        ("sibyl-sib.exe", "sibyl-sib"),
        ("/a/checkout/inference/svi_sib.py", "python -m inference.svi_sib"),
        ("", "python -m inference.svi_sib"),
    ],
)
def test_program_is_what_the_user_typed(monkeypatch, called, name):
    monkeypatch.setattr("sys.argv", [called, "--help"])
    assert program("svi_sib") == name
