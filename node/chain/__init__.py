"""The chain behind a port, `port.Escrow`: one web3 adapter, and a development chain."""
