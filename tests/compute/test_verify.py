from __future__ import annotations

import dataclasses

import pytest
import torch

from broker_node.verify.checks import MAX_MAGNITUDE, verify
from broker_node.verify.stages import Received
from node.params.architecture import Architecture, random_init
from node.params.encoding import weights_root
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Digest

SMALL = Architecture("mlp", {"widths": [3, 4, 2]})


def received(tensors: dict[str, torch.Tensor], architecture: Architecture = SMALL) -> Received:
    return Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)


def refusal(sent: Received) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        verify(sent)
    return refused.value.reason


def test_honest_tensors_are_verified() -> None:
    sent = received(random_init(SMALL, 0))
    verified = verify(sent)
    assert verified.weights_root == sent.weights_root
    assert verified.architecture == SMALL


def test_a_missing_or_an_extra_tensor_is_refused() -> None:
    tensors = random_init(SMALL, 0)
    assert refusal(received({**tensors, "extra": torch.zeros(1)})) == "wrong-tensors"
    del tensors["layers.0.bias"]
    assert refusal(received(tensors)) == "wrong-tensors"


def test_a_shape_that_broadcasts_is_still_the_wrong_shape() -> None:
    tensors = {**random_init(SMALL, 0), "layers.0.bias": torch.zeros(1)}
    assert refusal(received(tensors)) == "wrong-shape"


def test_another_element_type_is_refused() -> None:
    tensors = {**random_init(SMALL, 0), "layers.0.bias": torch.zeros(4, dtype=torch.float64)}
    assert refusal(received(tensors)) == "wrong-dtype"


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 11])
def test_one_poisoned_number_is_found(poison: float, place: int) -> None:
    tensors = random_init(SMALL, 0)
    tensors["layers.0.weight"].view(-1)[place] = poison
    assert refusal(received(tensors)) == "not-finite"


@pytest.mark.parametrize("sign", [1, -1])
def test_huge_weights_are_refused(sign: int) -> None:
    tensors = random_init(SMALL, 0)
    tensors["layers.1.weight"][0, 0] = sign * MAX_MAGNITUDE * 2
    assert refusal(received(tensors)) == "bad-magnitude"


def test_tensors_that_are_not_those_of_the_root_are_refused() -> None:
    sent = dataclasses.replace(received(random_init(SMALL, 0)), weights_root=Digest(bytes(32)))
    assert refusal(sent) == "root-mismatch"


def test_sane_weights_with_an_overflowing_output_are_refused() -> None:
    deep = Architecture("mlp", {"widths": [8] * 12})
    tensors = {
        name: torch.full_like(tensor, MAX_MAGNITUDE)
        for name, tensor in random_init(deep, 0).items()
    }
    assert refusal(received(tensors, deep)) == "overflows"


def test_tensors_without_a_function_are_checked_all_the_same() -> None:
    noise = Architecture("random", {"shapes": {"a": [4]}})
    tensors = random_init(noise, 0)
    assert verify(received(tensors, noise)).architecture == noise
    tensors["a"][0] = float("nan")
    assert refusal(received(tensors, noise)) == "not-finite"
