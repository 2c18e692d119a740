"""Hypothesis measures no time here: a disk or a busy machine is slow now and then."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
