"""A whole market on one machine, played by the real nodes, ending in a settled ledger."""
