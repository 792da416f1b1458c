"""What memory has room for."""

import pytest

from data.errors import UserError
from data.memory import check_memory, in_words, memory


def test_what_exceeds_memory_is_refused_in_one_line():
    assert 2**28 < memory() < 2**50
    check_memory(memory(), "this")
    with pytest.raises(UserError, match=r"^that takes at least .* of memory, and there are .*: choose a smaller one$"):
        check_memory(1.01 * memory(), "that")


def test_a_container_has_what_it_may_use(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "other").write_text("max\n")
    monkeypatch.setattr("data.memory.LIMITS", (tmp_path / "memory.max", tmp_path / "other", tmp_path / "none"))
    assert memory() == 1_000_000


def test_bytes_have_a_unit_of_their_size():
    assert [in_words(n) for n in (12, 1_500, 25.3e9, 4e21)] == ["12 bytes", "1.5 kB", "25.3 GB", "4e+06 PB"]
