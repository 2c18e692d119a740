"""Several brokers on one trade: each measures again what one has measured, and all sign."""
