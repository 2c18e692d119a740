"""A recipe is worth what every broker finds by itself, or no honest one seals a figure of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from broker_node.appraisal import DrillAppraiser, MarketAppraiser, Trial
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.architecture import Architecture, random_init
from node.params.encoding import weights_root
from node.params.recipe import Recipe, apply_recipe
from node.protocol.offer import BrokerNotice
from node.protocol.quorum import RECIPE_TOLERANCE, figure_of, sealed, with_figure
from node.protocol.types import ONE, Digest, Millionths
from tests.protocol.cast import BUYER, SELLER
from tests.quorum.chamber import Room, open_room
from tests.quorum.liar import Liar, nothing_came_of_it, refused, signatures_of
from tests.quorum.quorum_market import Measured

ARCHITECTURE: Final = Architecture("mlp", {"widths": [64, 24, 10]})
EPOCHS: Final = 40
STEPS: Final = 250


class Finding(Measured):
    """Its own trial is off by so many millionths from what it replays."""

    trials = 0

    def __init__(self, off: int, bound: int = 0) -> None:
        super().__init__()
        self._own = dataclasses.replace(Measured(off=off).figure(bound))

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        self.trials += 1
        trial = super().measure(base, sold, task=task, notice=notice)
        return dataclasses.replace(trial, evaluation=with_figure(trial.evaluation, self._own))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("what", ["gain", "bound"])
async def test_a_recipe_is_worth_what_our_own_is_or_is_not_signed_for(
    tmp_path: Path, sign: int, what: str
) -> None:
    for over, holds in ((0, True), (1, False)):
        off = sign * (RECIPE_TOLERANCE + over)
        if what == "gain":  # the bound is where it was
            own = Finding(off, bound=off) if off > 0 else Finding(off)
        else:
            own = Finding(max(off, 0), bound=RECIPE_TOLERANCE + over)
            own._own = dataclasses.replace(
                Measured().figure(), bound=Millionths(DrillAppraiser.GAIN - abs(off))
            )
        folder = tmp_path / f"{over}"
        folder.mkdir()
        with open_room(folder, second=lambda own=own: own) as room:  # type: ignore[misc]
            liar = Liar(room)
            if holds:
                await liar.cosign()
                assert len(signatures_of(room["second"])) == 1
            else:
                error = await refused("recipe-differs", liar.replay())
                assert str(DrillAppraiser.GAIN) in error.detail
                assert "both were found by drill" in error.detail
                assert signatures_of(room["second"]) == []


async def test_the_own_trial_of_a_pair_is_run_once_for_each_lead(tmp_path: Path) -> None:
    """However many recipes a lead tries, and however often the weights are offered anew."""
    own = Finding(2 * RECIPE_TOLERANCE)
    with open_room(tmp_path, second=lambda: own) as room:
        for nonce in range(1, 5):
            liar = Liar(room, sold=room.statement(SELLER, nonce=nonce))
            await refused("recipe-differs", liar.replay())
        assert own.trials == 1
        (docket,) = room["second"].bench._member._dockets.values()
        docket._places = 1  # type: ignore[misc]
        for number in range(3):
            docket.keep_own_trial(
                (Digest(bytes([number] * 32)),) * 2 + ("", "", (), Digest(b"")),
                (own._own, "drill"),
            )
        assert len(docket._own_trials) == 1


async def test_a_lead_without_honest_members_for_its_recipe_has_no_quorum(tmp_path: Path) -> None:
    own = Finding(-2 * RECIPE_TOLERANCE)
    with open_room(tmp_path, second=lambda: own, third=lambda: own) as room:
        base, sold = room.statement(BUYER, name="base"), room.statement(SELLER)
        error = await refused("below-quorum", room["first"].agree(base, sold))
        assert error.detail.count("recipe-differs") == 2  # whoever asked is told why


# ── on digits, with models that were trained ──


@pytest.fixture(scope="module")
def pair() -> tuple[Verified, Verified]:
    """Two models, each trained on a half of the digits."""
    torch.set_num_threads(1)
    train = load_digits(Path("/nowhere")).train
    inputs_RF = torch.tensor(np.asarray(train.inputs_RF)).float()
    labels_R = torch.tensor(np.asarray(train.labels_R)).long()
    half = len(labels_R) // 2
    return (
        _trained(1, inputs_RF[:half], labels_R[:half]),
        _trained(2, inputs_RF[half:], labels_R[half:]),
    )


def _trained(seed: int, inputs_RF: torch.Tensor, labels_R: torch.Tensor) -> Verified:
    tensors = {
        name: value.clone().requires_grad_(True)
        for name, value in random_init(ARCHITECTURE, seed).items()
    }
    descent = torch.optim.Adam(tensors.values(), 1e-2)
    for _ in range(EPOCHS):
        hidden_RF = torch.relu(inputs_RF @ tensors["layers.0.weight"].T + tensors["layers.0.bias"])
        outputs_RO = hidden_RF @ tensors["layers.1.weight"].T + tensors["layers.1.bias"]
        loss = cross_entropy(outputs_RO, labels_R)
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
    fixed = {name: value.detach().contiguous() for name, value in tensors.items()}
    return verify(
        Received(weights_root=weights_root(fixed), architecture=ARCHITECTURE, tensors=fixed)
    )


@pytest.fixture
def room(tmp_path: Path, pair: tuple[Verified, Verified]) -> Iterator[Room]:
    rows = ValidationSet.of(split_test(load_digits(tmp_path)).validation)
    with open_room(
        tmp_path,
        **{
            name: lambda: MarketAppraiser(rows, classes=10) for name in ("first", "second", "third")
        },
    ) as room:
        room.models |= {model.weights_root: model for model in pair}
        yield room


def _with_recipe(liar: Liar, pair: tuple[Verified, Verified], recipe: Recipe) -> Trial:
    """The trial of another recipe, with the figure that every replay gives it."""
    base, sold = pair
    merged = apply_recipe(ARCHITECTURE, base.tensors, sold.tensors, recipe)
    subject = sealed(
        dataclasses.replace(
            liar.trial.evaluation,
            alpha=recipe.alpha,
            recipe_hash=recipe.hash,
            merged_root=weights_root(merged),
        )
    )
    figure = liar.lead.appraiser.replay(subject, recipe.encode(), base, sold).figure
    return Trial(evaluation=with_figure(subject, figure), recipe=recipe.encode())


def _climbed(liar: Liar, pair: tuple[Verified, Verified], *, upwards: bool) -> Trial:
    """Fit α, permutation and scales to the rows that score the gain, by asking `replay`."""
    draws = torch.Generator().manual_seed(0)
    sign = 1 if upwards else -1

    def worth(trial: Trial) -> int:
        return sign * figure_of(trial.evaluation).gain

    honest = Recipe.decode(liar.trial.recipe)
    best = max(
        (
            _with_recipe(liar, pair, dataclasses.replace(honest, alpha=Millionths(alpha)))
            for alpha in range(ONE // 5, ONE + 1, ONE // 10)  # 0 is worth 0, whatever else it says
        ),
        key=worth,
    )
    for step in range(STEPS):
        if worth(best) - worth(liar.trial) > 4 * RECIPE_TOLERANCE:
            break
        known = Recipe.decode(best.recipe)
        ((group, units),) = known.permutations.items()
        order, scales = list(units), dict(known.scales)
        if step % 3 == 0:
            left, right = torch.randint(len(order), (2,), generator=draws).tolist()
            order[left], order[right] = order[right], order[left]
        else:
            scales = {name: _shaken(value, draws) for name, value in scales.items()}
        recipe = dataclasses.replace(known, permutations={group: tuple(order)}, scales=scales)
        best = max(best, _with_recipe(liar, pair, recipe), key=worth)
    return best


def _shaken(scale: bytes, draws: torch.Generator) -> bytes:
    values = np.frombuffer(scale, "<f4")
    noise = torch.randn(len(values), generator=draws).numpy() * float(
        torch.rand(1, generator=draws)
    )
    return bytes((values * np.exp(noise)).astype("<f4").tobytes())


@pytest.mark.parametrize("upwards", [True, False])
async def test_honest_members_refuse_a_recipe_that_was_fitted_to_the_rows(
    room: Room, pair: tuple[Verified, Verified], upwards: bool
) -> None:
    base, sold = pair
    liar = Liar(room, base=room.statement(BUYER, base), sold=room.statement(SELLER, sold))
    honest = liar.trial
    fitted = _climbed(liar, pair, upwards=upwards)
    print(figure_of(honest.evaluation), figure_of(fitted.evaluation))
    moved = figure_of(fitted.evaluation).gain - figure_of(honest.evaluation).gain
    assert abs(moved) > 4 * RECIPE_TOLERANCE
    # whoever replays it alone finds nothing wrong
    found = (
        room["second"].appraiser.replay(sealed(fitted.evaluation), fitted.recipe, base, sold).figure
    )
    assert found == figure_of(fitted.evaluation)
    liar.trial = fitted
    await refused("recipe-differs", liar.replay())
    liar.trial = honest
    await nothing_came_of_it(liar)
