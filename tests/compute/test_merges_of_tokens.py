"""Language models go through every merge that perceptrons go through, or are refused by name."""

from __future__ import annotations

import hashlib

import pytest
import torch

from broker_node.align.identity import identity
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import Aligned
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.methods import MARKET
from broker_node.evaluate.tuning import tuned
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge.registry import MERGERS, TRADED
from broker_node.merge.stages import MergeError, Rows
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, random_init
from node.params.encoding import weights_root
from node.protocol.types import ONE, Digest, Millionths

TOKENS = Architecture(
    "gpt",
    {
        "context": 6, "depth": 1, "heads": 2, "hidden": 8, "norm": "rms", "tied": False,
        "vocabulary": 11, "width": 8,
    },
)  # fmt: skip
SEED = Digest(hashlib.sha256(b"tokens").digest())


def model(seed: int) -> Verified:
    tensors = dict(random_init(TOKENS, seed))
    return verify(
        Received(weights_root=weights_root(tensors), architecture=TOKENS, tensors=tensors)
    )


def counting(rows: int) -> Rows:
    """Rows that count upwards, each from somewhere: the next token is one more."""
    starts_R = torch.randint(0, 11, (rows, 1), generator=torch.Generator().manual_seed(3))
    inputs_RF = (starts_R + torch.arange(6)) % 11
    return Rows(inputs_RF.float(), ((starts_R[:, 0] + 6) % 11).long())


@pytest.fixture(scope="module")
def pair() -> Aligned:
    """A buyer that knows nothing, and a seller that has learnt to count."""
    rows = counting(256)
    taught = tuned(TOKENS, model(1).tensors, rows.inputs_RF, rows.targets_R, seed=0).tensors
    sold = {name: tensor.detach().clone() for name, tensor in taught.items()}
    seller = verify(Received(weights_root=weights_root(sold), architecture=TOKENS, tensors=sold))
    return identity(model(2), seller, seed=0)


REFUSED = {"fisher", "repair", "reset"}


@pytest.mark.parametrize("name", sorted(set(MERGERS) - REFUSED))
def test_a_merge_of_language_models_is_made(name: str, pair: Aligned) -> None:
    found = MERGERS[name]([pair], counting(128), seed=0, base=model(3))
    if found.tensors is not None:
        assert set(found.tensors) == set(pair.buyer.tensors)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_merge_that_needs_a_chain_of_layers_refuses_language_models(
    name: str, pair: Aligned
) -> None:
    with pytest.raises(MergeError):
        MERGERS[name]([pair], counting(128), seed=0, base=model(3))


@pytest.mark.parametrize("name", sorted(TRADED))
def test_every_merge_of_a_trade_finds_shares_for_language_models(name: str, pair: Aligned) -> None:
    found = TRADED[name](pair.buyer, pair.transformed, counting(128), Millionths(ONE // 2))
    assert found.row_evaluations >= 0
    assert all(0 <= share <= ONE for shares in found.shares.values() for share in shares)


def test_the_markets_own_method_measures_language_models(pair: Aligned) -> None:
    rows = counting(256)
    aligned = ALIGNERS[MARKET.alignment](
        pair.buyer, pair.seller, seed=0, probe_RF=rows.inputs_RF[:128]
    )
    found = evaluate(
        aligned,
        ValidationSet(rows.inputs_RF, rows.targets_R),
        seed=SEED,
        merging=MARKET.merging,
    )
    assert found.merging == MARKET.merging
    assert found.gain > 0
