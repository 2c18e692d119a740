"""Trying checkpoints out on one machine: which of them merge well, without a market."""
