"""pm-node: agents that trade the parameters they train."""
