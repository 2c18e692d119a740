"""An empty book for each test that wants one."""

from __future__ import annotations

import pytest

from node.protocol.book import OfferBook
from tests.protocol.cast import DOMAIN


@pytest.fixture
def ours() -> OfferBook:
    """Return a book that trusts any broker."""
    return OfferBook(DOMAIN)
