"""One line, whatever stands in it."""

import pytest

from data.errors import UserError, readable


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\u2028", "\x85", "\0", "\udcff"])
def test_an_error_is_one_line_that_can_be_printed(sign):
    message = str(UserError(f"no class a{sign}b: × ≥"))
    assert len(message.splitlines()) == 1
    assert message.encode() == f"no class a{ascii(sign)[1:-1]}b: × ≥".encode()


def test_what_can_be_printed_stays():
    assert readable("βεγ\u00a0ñ 字") == "βεγ\u00a0ñ 字"
