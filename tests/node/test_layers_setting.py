"""Which layers are offered: read alike from flag, variable and file."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config import ConfigError, load, template


@pytest.mark.parametrize("written", ["0,1", " 1 , 0 ", "0,1,"])
def test_layers_are_numbers_with_commas_between_in_any_order(written: str) -> None:
    assert load(flags={"layers": written}).config.layers == (0, 1)
    assert load(environ={"PMNODE_LAYERS": written}).config.layers == (0, 1)


def test_a_file_lists_them_and_reads_its_own_template_back(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for text in ("layers = [1, 0]\n", 'layers = "0,1"\n', template({"layers": "0,1"})):
        file.write_text(text)
        assert load(file=file).config.layers == (0, 1)
    assert load().config.layers == ()


@pytest.mark.parametrize("wrong", ["0,0", "-1", "0,-1", "a", "0;1", "1.0", [0, True], [[0]], 3])
def test_what_is_no_list_of_layers_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(ConfigError, match="layers by number from 0"):
        load(flags={"layers": wrong})
