"""Making one model, or one answer, of a buyer's model and those that were aligned with it."""
