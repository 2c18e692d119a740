"""The papers' experiments, played again: `scripts/reproduce.py` is their command."""
