"""From bytes that somebody sent to a model that may be computed with."""
