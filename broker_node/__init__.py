"""The broker: verify, align, evaluate, price."""
