"""YAML of options: what is refused before anything is built of it."""

import pytest
import yaml

from data.errors import UserError
from inference.runs.commands import read_command
from inference.runs.flat_yaml import LONGEST, read_yaml
from inference.runs.options import RunOptions, options_from_yaml

BOMB = "".join(f"a{i}: &a{i} [{','.join(10 * [f'*a{i - 1}' if i else 'x'])}]\n" for i in range(9)) + "data: *a8\n"
"""A kilobyte that stands for a billion words."""
DEEP = f"data: {10_000 * '['}{10_000 * ']'}\n"


@pytest.mark.parametrize(("text", "message"), [(BOMB, "a0 is an alias"), (DEEP, "more than 8 lists")])
def test_alias_bombs_and_depth_are_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)
    with pytest.raises(UserError, match=f"config.yaml is damaged.*{message}"):
        options_from_yaml(RunOptions, text, "config.yaml")
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_command(RunOptions, "svi_sib", "", ["--config", str(tmp_path / "options.yaml")])
    assert "\n" not in str(error.value)


def test_alias_bombs_on_the_command_line_are_no_values():
    with pytest.raises(UserError, match="must be a whole number"):
        read_command(RunOptions, "svi_sib", "", ["--seed", f"{{{BOMB.replace(chr(10), ', ')}}}"])


def test_very_long_files_are_refused():
    with pytest.raises(yaml.YAMLError, match="more than 1048576 characters"):
        read_yaml(f"data: {LONGEST * 'x'}")


def test_flat_files_are_read():
    assert read_yaml("data: folder\nway: [5, 20]\nroot: null\n") == {"data": "folder", "way": [5, 20], "root": None}
