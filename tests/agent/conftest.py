"""A journal, for every test that wants one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from node.journal import Journal

# the machine may be shared: property tests are not timed
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()
