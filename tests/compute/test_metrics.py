"""Figures beside the loss: by name, or by code of the user's own."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from broker_node.evaluate.metrics import (
    METRICS,
    MetricError,
    measured,
    metric_named,
    number_of,
)
from node.params.architecture import Architecture, random_init

TOKENS = Architecture(
    "gpt",
    {
        "context": 4, "depth": 1, "heads": 1, "hidden": 4, "norm": "rms", "tied": False,
        "vocabulary": 5, "width": 4,
    },
)  # fmt: skip
CLASSES = Architecture("mlp", {"widths": [3, 4]})
VALUES = Architecture("linear", {"inputs": 3, "outputs": 1})


def said(name: str, architecture: Architecture, inputs: torch.Tensor, targets: object) -> float:
    tensors = random_init(architecture, 0)
    return measured(metric_named(name), architecture, tensors, inputs, torch.as_tensor(targets))


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = [0, 1, 2, 3, 0, 1]
    loss = said("loss", CLASSES, rows, targets)
    assert said("perplexity", CLASSES, rows, targets) == pytest.approx(math.exp(loss))
    assert 0 <= said("accuracy", CLASSES, rows, targets) <= 1


def test_of_tokens_every_place_counts() -> None:
    rows = torch.zeros(2, 4)
    tensors = random_init(TOKENS, 0)
    tensors["head.weight"] = torch.zeros(5, 4)
    right = measured(METRICS["accuracy"], TOKENS, tensors, rows, torch.tensor([0, 3]))
    assert right == 7 / 8  # equal logits: token 0 is taken for the likeliest
    found = measured(METRICS["perplexity"], TOKENS, tensors, rows, torch.tensor([0, 3]))
    assert found == pytest.approx(5)


@pytest.mark.parametrize("name", ["accuracy", "perplexity"])
def test_values_have_neither_accuracy_nor_perplexity(name: str) -> None:
    with pytest.raises(MetricError, match=f"{name} is of classes"):
        said(name, VALUES, torch.zeros(2, 3), [0.5, 1.5])
    assert said("loss", VALUES, torch.zeros(2, 3), [0.5, 1.5]) >= 0


def test_a_plug_in_is_asked_with_the_model_and_every_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "def shape(model, batch):\n"
        "    inputs, targets = batch\n"
        "    return 1000 * model(inputs).shape[1] + targets.numel()\n\n"
        "def fails(model, batch):\n"
        "    return 1 / 0\n\n"
        "def text(model, batch):\n"
        "    return 'good'\n\n"
        "def huge(model, batch):\n"
        "    return 10**400\n\n"
        "def spoils(model, batch):\n"
        "    batch[0].zero_(), batch[1].zero_()\n"
        "    return 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    assert said("own_metrics:shape", TOKENS, torch.zeros(3, 4), [0, 1, 2]) == 4012
    with pytest.raises(MetricError, match="'own_metrics:fails' failed: ZeroDivisionError"):
        said("own_metrics:fails", TOKENS, torch.zeros(3, 4), [0, 1, 2])
    with pytest.raises(MetricError, match="must return one number, and returned 'good'"):
        said("own_metrics:text", TOKENS, torch.zeros(3, 4), [0, 1, 2])
    with pytest.raises(MetricError, match="past all floats"):
        said("own_metrics:huge", TOKENS, torch.zeros(3, 4), [0, 1, 2])
    rows_RF = torch.ones(3, 4)
    assert said("own_metrics:spoils", TOKENS, rows_RF, [0, 1, 2]) == 0
    assert bool((rows_RF == 1).all())
    with pytest.raises(MetricError, match="'own_metrics:absent' cannot be loaded: Attribute"):
        metric_named("own_metrics:absent")


@pytest.mark.parametrize("name", ["bleu", "", ":", "own:", ":f"])
def test_a_metric_that_there_is_not_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(MetricError, match="write loss, accuracy, perplexity, or MODULE:FUNCTION"):
        metric_named(name)


def test_one_number_is_one_number() -> None:
    assert number_of(torch.tensor([2.5])) == 2.5
    for strange in (None, True, "1", torch.zeros(2)):
        with pytest.raises(MetricError, match="one number"):
            number_of(strange)
