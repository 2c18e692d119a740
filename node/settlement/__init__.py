"""Settlement: trades followed on chain, and transactions sent once and surely.

`treasury` carries out one transaction at a time: saved, then sent, then seen mined.
`watch` tells what the chain did, as deep as the node's confirmations, never skipping a block.
"""
