"""Where a broker's computing is done: in its own process, or on a Ray cluster."""
