"""A node of either role, put together from its settings."""
