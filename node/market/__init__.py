"""The market from a training loop of your own.

    from node.market import Market

    with Market(
        chain="http://127.0.0.1:8545",
        escrow="0x...",                  # the market's contract
        bootstrap=["/ip4/..."],          # its broker
    ) as market:
        market.resume(model)             # where it stood when it was last closed, if it ever was
        for epoch in range(50):
            train_one_epoch(model)
            market.offer(model)          # for sale, and submitted for trials
            round_ = market.step()       # try what others offer, buy the best that helps
            market.adopt(model)          # the merged weights, if any were bought
            print(round_.because, round_.price, round_.gain)

What was bought and paid for is never lost: where a crash cut a round off after it had bought,
`resume` gives the merged weights, and `offer` refuses until they were asked for.

With a broker on this machine (``pm-node --role broker``) nothing needs to be named. The escrow
of another is where the money goes, and is therefore never learnt from a peer.
"""

from node.agent.progress import Step
from node.market.joining import JoinTimeoutError
from node.market.market import Market
from node.market.modules import architecture_of, load_into, tensors_of
from node.params.architecture import Architecture

__all__ = [
    "Architecture",
    "JoinTimeoutError",
    "Market",
    "Step",
    "architecture_of",
    "load_into",
    "tensors_of",
]
