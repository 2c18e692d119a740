"""A broker holds an offer of some layers to exactly their tensors, by a named reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_node.appraisal import Appraiser, DrillAppraiser, MarketAppraiser
from broker_node.evaluate.validation import ValidationSet
from node.params.architecture import Architecture, layout, part_of, random_init
from node.params.encoding import encode_tensors, weights_root
from node.protocol import merkle
from node.protocol.book import OfferBook
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.parameters import encoded_length
from node.protocol.schema import from_map, to_map
from node.protocol.types import Wei
from tests.protocol import cast

EQUAL = Architecture("mlp", {"widths": [4, 4, 4, 4]})
"""Three layers of one shape: their lengths tell them not apart."""
TENSORS = random_init(EQUAL, 0)


@pytest.fixture
def appraiser() -> MarketAppraiser:
    rows = ValidationSet(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3]))
    return MarketAppraiser(rows, classes=4)


def offer_of(
    layers: tuple[int, ...], blob: bytes, architecture: Architecture = EQUAL
) -> Offer:  # fmt: skip
    """Say that a blob is these layers."""
    return cast.offer(
        architecture=architecture.text,
        layers=layers,
        weights_root=merkle.root_of(blob),
        byte_length=len(blob),
        leaf_count=merkle.leaf_count(len(blob)),
    )


def blob_of(*layers: int) -> bytes:
    return encode_tensors(part_of(EQUAL, TENSORS, layers))


def reason_of(appraiser: Appraiser, offer: Offer, blob: bytes, folder: Path) -> tuple[str, bool]:
    """Return why an offer is refused, and whether its weights had to be fetched for that."""
    path = folder / "blob"
    path.write_bytes(blob)
    with pytest.raises(RemoteProtocolError) as refused:
        appraiser.admit(path, offer)
    try:
        appraiser.screen(offer)
    except RemoteProtocolError as error:
        return error.reason, False
    return refused.value.reason, True


def test_the_layers_that_are_offered_are_taken(appraiser: MarketAppraiser, tmp_path: Path) -> None:
    for layers in ((), (0,), (0, 1), (0, 2)):
        path = tmp_path / str(layers)
        path.write_bytes(blob_of(*layers))
        model = appraiser.admit(path, offer_of(layers, blob_of(*layers)))
        assert model.layers == layers
        assert model.weights_root == weights_root(part_of(EQUAL, TENSORS, layers))


@pytest.mark.parametrize(
    ("layers", "held", "reason"),
    [
        ((3,), (0,), "bad-layers"),
        ((0, 2**64 - 1), (0, 1), "bad-layers"),
        ((0, 1, 2), (), "bad-layers"),
        (tuple(range(1_024)), (), "bad-layers"),
        ((0, 1), (), "wrong-size"),
        ((0, 1), (0,), "wrong-size"),
        ((), (0, 1), "wrong-size"),
    ],
    ids=["no such", "far out", "all", "too many", "the whole", "one missing", "no whole"],
)
def test_an_offer_that_cannot_be_is_refused_unfetched(
    appraiser: MarketAppraiser,
    layers: tuple[int, ...],
    held: tuple[int, ...],
    reason: str,
    tmp_path: Path,
) -> None:
    blob = blob_of(*held)
    assert reason_of(appraiser, offer_of(layers, blob), blob, tmp_path) == (reason, False)


def with_header_of(layers: tuple[int, ...], *tensors: str) -> bytes:
    """Return tensors of as many bytes as these layers have."""
    blob = encode_tensors({name: TENSORS[name] for name in tensors})
    assert len(blob) == encoded_length(layout(EQUAL, layers))
    return blob


W0, B0, W1, B1, W2, B2 = (f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias"))


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (with_header_of((0, 1), W0, B0, W2, B2), "missing-tensor"),
        (with_header_of((0, 1), W1, B1, W2, B2), "missing-tensor"),
        (with_header_of((0, 1), W0, B1, W1, B2), "missing-tensor"),
    ],
    ids=["one layer is another", "both are", "a bias is another's"],
)
def test_other_layers_of_the_same_size_are_refused(
    appraiser: MarketAppraiser, blob: bytes, reason: str, tmp_path: Path
) -> None:
    assert reason_of(appraiser, offer_of((0, 1), blob), blob, tmp_path) == (reason, True)


def test_tensors_missing_or_extra_are_refused_however_long_they_were_said_to_be(
    appraiser: MarketAppraiser, tmp_path: Path
) -> None:
    """A broker whose blob is not as long as the offer says would still not take it."""
    path = tmp_path / "blob"
    honest = offer_of((0, 1), blob_of(0, 1))
    one_more = encode_tensors({name: TENSORS[name] for name in (W0, B0, W1, B1, B2)})
    for blob, reason in (
        (blob_of(0), "missing-tensor"),
        (blob_of(), "unexpected-tensor"),
        (one_more, "unexpected-tensor"),
    ):
        path.write_bytes(blob)
        with pytest.raises(RemoteProtocolError) as refused:
            appraiser.admit(path, honest)
        assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("appraiser", "architecture"),
    [
        (DrillAppraiser(), Architecture("random", {"shapes": {"a": [4], "b": [4]}})),
        (
            MarketAppraiser(ValidationSet(torch.zeros(4, 4), torch.zeros(4)), classes=1),
            Architecture("linear", {"inputs": 4, "outputs": 1}),
        ),
    ],
    ids=["drill", "linear"],
)
def test_models_that_are_sold_whole_have_no_layers_to_offer(
    appraiser: Appraiser, architecture: Architecture, tmp_path: Path
) -> None:
    blob = encode_tensors(random_init(architecture, 0))
    appraiser.screen(offer_of((), blob, architecture))
    offer = offer_of((0,), blob, architecture)
    assert reason_of(appraiser, offer, blob, tmp_path) == ("bad-layers", False)


@pytest.mark.parametrize("layers", [(1, 0), (0, 0), (0, 2, 1)], ids=str)
def test_layers_that_do_not_rise_get_into_no_book(layers: tuple[int, ...]) -> None:
    said = to_map(cast.offer(layers=(0, 1, 2)))
    with pytest.raises(RemoteProtocolError, match="layers must rise") as refused:
        from_map(Offer, {**said, "layers": list(layers)})
    assert refused.value.reason == "malformed"


def test_what_is_not_for_sale_is_signed_like_any_offer() -> None:
    base = cast.offer(reserve=NOT_FOR_SALE)
    assert not base.for_sale
    assert cast.offer(reserve=Wei(NOT_FOR_SALE - 1)).for_sale
    assert OfferBook(cast.DOMAIN).receive(cast.seal(base, cast.SELLER), cast.NOW).accepted
