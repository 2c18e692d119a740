"""Rounds of a clearing house: what each party pays and gets by a mechanism, and who sees to it."""
