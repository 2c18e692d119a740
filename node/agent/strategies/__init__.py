"""How an agent bids, asks and offers: one strategy a file, and their registry."""
