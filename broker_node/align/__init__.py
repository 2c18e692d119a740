"""Lining up the units of two models that learned the same things in another order."""
