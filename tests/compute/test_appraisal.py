"""What a broker takes on is bounded before it is fetched, and what it holds after."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from broker_node import admission
from broker_node.align.matching import MAX_WORK, sweeps_of, work_of
from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate import evaluation
from broker_node.evaluate.methods import MARKET
from broker_node.evaluate.validation import ValidationSet
from broker_node.shelf import ModelShelf
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, layout, permutation_spec, random_init
from node.params.encoding import weights_root
from node.params.permutation import restrict
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.parameters import encoded_length
from tests.protocol import cast

WIDEST = 2_596
"""Of one group: its forward pass and one sweep are what a trial may take."""
SMALL = Architecture("mlp", {"widths": [3, 4, 2]})
SMALL_BYTES = 4 * (3 * 4 + 4 + 4 * 2 + 2)


@pytest.fixture(scope="module")
def appraiser() -> MarketAppraiser:
    rows = ValidationSet(torch.zeros(4, 784), torch.tensor([0, 1, 2, 3]))
    return MarketAppraiser(rows, classes=10)


def offer_of(*widths: int, layers: tuple[int, ...] = ()) -> Offer:
    """What a seller of such a network says, honest in all but its width."""
    return offer_for(Architecture("mlp", {"widths": list(widths)}), layers)


def offer_for(architecture: Architecture, layers: tuple[int, ...] = ()) -> Offer:
    length = encoded_length(layout(architecture, layers))
    return cast.offer(
        architecture=architecture.text,
        layers=layers,
        byte_length=length,
        leaf_count=merkle.leaf_count(length),
    )


# ---------------------------------------------------------------- what is refused unfetched


@pytest.mark.parametrize(
    ("hidden", "layers"),
    [
        ((32, 32, 32, 16), ()),
        ((512, 512, 512, 512), ()),
        ((512, 512, 512, 512), (1, 2, 3)),
        ((2_048, 2_048), ()),
        ((2_048, 2_048), (0, 1)),
        ((WIDEST,), ()),
        ((WIDEST,), (1,)),
        ((512,) * 100, ()),
    ],
    ids=["the paper's", "512x4", "512x4 inside", "2048x2", "2048x2 in part", "the widest",
         "the widest in part", "512x100"],
)  # fmt: skip
def test_a_network_within_the_bounds_is_taken(
    appraiser: MarketAppraiser, hidden: tuple[int, ...], layers: tuple[int, ...]
) -> None:
    appraiser.screen(offer_of(784, *hidden, 10, layers=layers))


@pytest.mark.parametrize(
    ("hidden", "layers", "value"),
    [
        ((65_536,), (), "65536 units"),
        ((WIDEST + 1,), (), f"{WIDEST + 1} units"),
        ((WIDEST + 1,), (1,), f"{WIDEST + 1} units"),
        ((512, WIDEST + 1, 512), (), f"{WIDEST + 1} units"),
        ((2_048, 2_048), (1, 2), "2048 units"),
        ((512,) * 150, (), "512 units"),
    ],
    ids=["65536 wide", "one unit too wide", "too wide in part", "too wide inside",
         "too wide for two descents", "too many layers"],
)  # fmt: skip
def test_a_network_too_wide_to_align_is_refused_from_its_offer_alone(
    appraiser: MarketAppraiser,
    hidden: tuple[int, ...],
    layers: tuple[int, ...],
    value: str,
) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        appraiser.screen(offer_of(784, *hidden, 10, layers=layers))
    assert refused.value.reason == "too-wide"
    assert value in refused.value.detail
    assert f"{MAX_WORK:.3g}" in refused.value.detail


IMAGES = Architecture("resnet", {"classes": 10, "depth": 10, "image": [1, 8, 8], "widen": 1})
NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)
WORDS = Architecture(
    "gpt",
    {"context": 8, "depth": 1, "heads": 2, "hidden": 16, "norm": "rms", "tied": False,
     "vocabulary": 10, "width": 8},
)  # fmt: skip


def broker_of(inputs_RF: torch.Tensor) -> MarketAppraiser:
    rows = ValidationSet(inputs_RF, torch.arange(len(inputs_RF)) % 10)
    return MarketAppraiser(rows, classes=10, method=MARKET.alignment, merging=MARKET.merging)


@pytest.mark.parametrize("family", ["resnet", "gpt"])
def test_whatever_family_fits_the_rows_is_taken_and_tried(family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    made, rows_RF = {
        "resnet": (IMAGES, torch.randn(40, 64, generator=generator)),
        "gpt": (WORDS, torch.randint(10, (40, 8), generator=generator).float()),
    }[family]
    broker = broker_of(rows_RF)
    broker.screen(offer_for(made))
    ours, theirs = (model(seed, made) for seed in (1, 2))
    trial = broker.measure(
        ours, theirs, task="digits", notice=(cast.NOTICE_DIGEST, cast.NOTICE)
    ).evaluation
    assert trial.architecture == made.text
    assert trial.method.startswith("universe")


@pytest.mark.parametrize(
    ("made", "inputs_RF"),
    [
        (IMAGES, torch.zeros(20, 784)),
        (WORDS, torch.zeros(20, 784)),
        (WORDS, torch.full((20, 8), 0.5)),
        (WORDS, torch.full((20, 8), 10.0)),
    ],
    ids=["other images", "longer rows", "rows that are no tokens", "more tokens"],
)
def test_a_model_of_other_rows_is_refused_before_its_symmetries_are_looked_for(
    made: Architecture, inputs_RF: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(_: Architecture) -> None:
        raise AssertionError("a graph is traced in seconds, for whoever writes its name")

    monkeypatch.setattr(admission, "permutation_spec", costly)
    with pytest.raises(RemoteProtocolError) as refused:
        broker_of(inputs_RF).screen(offer_for(made))
    assert refused.value.reason == "wrong-architecture"


@pytest.mark.parametrize(
    ("depth", "widen", "taken"), [(10, 1, True), (76, 10, False)], ids=["small", "434 MiB"]
)
def test_a_network_that_a_trial_would_never_end_of_is_refused_from_its_offer_alone(
    depth: int, widen: int, taken: bool
) -> None:
    made = Architecture(
        "resnet", {"classes": 10, "depth": depth, "image": [1, 8, 8], "widen": widen}
    )
    broker = broker_of(torch.zeros(600, 64))
    if taken:
        broker.screen(offer_for(made))
        return
    with pytest.raises(RemoteProtocolError) as refused:
        broker.screen(offer_for(made))
    assert refused.value.reason == "too-costly"
    assert "600 rows" in refused.value.detail


def test_a_trial_tells_what_makes_its_gain_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs_RF = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    made = Architecture("mlp", {"widths": [64, 8, 10]})
    nothing = {name: torch.zeros_like(t) for name, t in random_init(made, 0).items()}
    dead = verify(Received(weights_root=weights_root(nothing), architecture=made, tensors=nothing))
    broker, said = broker_of(inputs_RF), {"task": "digits", "notice": NOTICE}

    def told(sold: Verified) -> tuple[str, ...]:
        return broker.measure(model(1, made), sold, **said).doubts  # type: ignore[arg-type]

    assert told(model(2, made)) == ()
    assert told(dead) == ("constant: the seller's model answers every row alike",)
    monkeypatch.setattr(evaluation, "valleys", lambda losses: len(losses) and 2)
    assert [doubt.partition(":")[0] for doubt in told(model(2, made))] == ["several-minima"]


def test_only_what_is_sold_is_matched(appraiser: MarketAppraiser) -> None:
    wide = offer_of(784, 3_000, 256, 10, layers=(2,))
    appraiser.screen(wide)
    whole = offer_of(784, 3_000, 256, 10)
    appraiser.screen(dataclasses.replace(whole, reserve=NOT_FOR_SALE))
    with pytest.raises(RemoteProtocolError, match="too-wide"):
        appraiser.screen(whole)


def test_where_nothing_is_matched_no_network_is_too_wide_to_match() -> None:
    rows = ValidationSet(torch.zeros(4, 784), torch.tensor([0, 1, 2, 3]))
    MarketAppraiser(rows, classes=10, method="identity").screen(offer_of(784, 65_536, 10))


# --------------------------------------------------------------------- what is held, and goes


def model(seed: int, architecture: Architecture = SMALL) -> Verified:
    tensors = random_init(architecture, seed)
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def test_models_beyond_the_count_go_the_least_recently_used_first() -> None:
    first, second, third = (model(seed) for seed in range(3))
    shelf = ModelShelf(2)
    assert shelf.put(first) == shelf.put(second) == ()
    assert shelf.get(first.weights_root) is first
    assert shelf.put(third) == (second.weights_root,)
    assert shelf.get(second.weights_root) is None


def test_models_beyond_the_bytes_go_however_few_they_are() -> None:
    first, second, third = (model(seed) for seed in range(3))
    shelf = ModelShelf(256, 2 * SMALL_BYTES)
    assert shelf.put(first) == shelf.put(second) == ()
    assert shelf.get(first.weights_root) is first
    assert shelf.put(third) == (second.weights_root,)
    assert shelf.put(second) == (first.weights_root,)


def test_a_large_model_takes_the_place_of_several_and_is_held_alone() -> None:
    small = [model(seed) for seed in range(3)]
    large = model(9, Architecture("mlp", {"widths": [3, 40, 2]}))
    shelf = ModelShelf(256, 3 * SMALL_BYTES)
    for one in small:
        assert shelf.put(one) == ()
    assert shelf.put(large) == tuple(one.weights_root for one in small)
    assert shelf.get(large.weights_root) is large
    assert shelf.put(small[0]) == (large.weights_root,)
    assert shelf.put(small[1]) == shelf.put(small[2]) == ()


def test_a_model_that_is_put_again_is_counted_once() -> None:
    first, second = model(0), model(1)
    shelf = ModelShelf(256, 2 * SMALL_BYTES)
    for _ in range(3):
        assert shelf.put(first) == ()
    assert shelf.put(second) == ()


@pytest.mark.parametrize(
    ("widths", "layers", "sweeps"),
    [
        ((784, 32, 32, 32, 16, 10), (), 200),
        ((784, 512, 512, 512, 10), (), 85),
        ((784, 512, 512, 512, 10), (1, 2, 3), 42),
        ((784, 512, 512, 512, 10), (3,), 130),
        ((784, 2_048, 10), (), 3),
        ((784, WIDEST, 10), (), 1),
        ((784, WIDEST, 10), (1,), 1),
    ],
)
def test_the_widest_models_are_given_fewer_sweeps(
    widths: tuple[int, ...], layers: tuple[int, ...], sweeps: int
) -> None:
    architecture = Architecture("mlp", {"widths": list(widths)})
    names = {spec.name for spec in layout(architecture, layers)}
    spec = restrict(permutation_spec(architecture), names)
    assert sweeps_of(spec) == sweeps
    assert work_of(spec, sweeps) <= MAX_WORK
