"""The arms of an experiment: same weights, batches and seeds in each, other rules of trade.

| arm           | units of the seller's model | merge weight α       | source            |
|---------------|-----------------------------|----------------------|-------------------|
| out-of-market | nothing is bought           |                      | Train 'n Trade §6 |
| fedavg        | as they are                 | one half             | its baseline      |
| unaligned     | as they are                 | the protocol's       | its ablation      |
| aligned       | weight matching             | the protocol's       | its Algorithm 1   |
| universe      | by a universe               | one for each unit    | what brokers do   |

| protocol | rows of the test set                     | α              | bought if           |
|----------|------------------------------------------|----------------|---------------------|
| clean    | ¼ choose α, ¼ score the gain, ½ report   | on [0, 1]      | the bound is over 0 |
| paper    | all of them for all three                | .05, .15 … .95 | the gain is over 0  |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Arm:
    """How one arm trades."""

    name: str
    alignment: str = ""
    """A method of `broker_node.align`; none for an arm that does not trade."""
    merging: str = "lerp"
    """A merge of `broker_node.merge.registry.TRADED`."""
    search: str = ""
    """A search of `broker_node.evaluate`; none for that of the protocol."""

    @property
    def trades(self) -> bool:
        """Whether agents of this arm meet at all."""
        return bool(self.alignment)

    def search_under(self, protocol: str) -> str:
        """Return the α search of this arm."""
        return self.search or PROTOCOL_SEARCH[protocol]


PROTOCOL_SEARCH: Final = {"clean": "halving-brent", "paper": "paper-grid"}
OUT_OF_MARKET: Final = "out-of-market"
UNIVERSE: Final = "universe"
ARMS: Final[dict[str, Arm]] = {
    arm.name: arm
    for arm in (
        Arm(OUT_OF_MARKET),
        Arm("fedavg", "identity", search="half"),
        Arm("unaligned", "identity"),
        Arm("aligned", "weight-matching"),
        Arm(UNIVERSE, "universe", "unit-alpha"),
    )
}
"""By name, in the order in which reports show them."""
PAPER_ARMS: Final = tuple(name for name in ARMS if name != UNIVERSE)
"""Those of Train 'n Trade's experiments."""
