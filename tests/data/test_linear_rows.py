from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from node.data import linear
from node.data.datasets import load
from node.data.files import DataError
from node.data.linear import load_linear
from node.data.rows import Dataset
from tests.data.small import NOWHERE


@pytest.fixture(scope="module")
def study() -> Dataset:
    return load("linear", NOWHERE, seed=3)


def test_the_study_has_the_papers_sizes(study: Dataset) -> None:
    assert study.features == 1000
    assert study.holdings == (500, 800)
    assert len(study.test) == 10_000
    assert (study.kind, study.classes, study.outputs) == ("regression", 0, 1)


def test_only_the_second_agents_values_are_noisy(study: Dataset) -> None:
    inputs_RF = study.test.inputs_RF.astype(np.float64)
    truth_F = linear._normal(3, 0, linear.FEATURES)
    assert truth_F.std() == pytest.approx(1, abs=0.1)
    noise_R = study.train.values_R - study.train.inputs_RF.astype(np.float64) @ truth_F
    assert np.abs(noise_R[:500]).max() < 1e-5
    assert noise_R[500:].var() == pytest.approx(0.5, abs=0.1)
    assert noise_R[500:].mean() == pytest.approx(0, abs=0.1)
    np.testing.assert_allclose(inputs_RF @ truth_F, study.test.values_R, atol=1e-5)
    assert inputs_RF.mean() == pytest.approx(0, abs=1e-3)
    assert inputs_RF.std() == pytest.approx(1, abs=1e-3)


def test_values_are_exact_sums_in_whatever_order_they_are_taken(study: Dataset) -> None:
    truth_F = linear._normal(3, 0, linear.FEATURES)
    for order in (slice(None), slice(None, None, -1)):
        products_RF = study.test.inputs_RF[:100].astype(np.float64) * truth_F
        sums_R = np.cumsum(products_RF[:, order], axis=1)[:, -1]
        np.testing.assert_array_equal(sums_R.astype(np.float32), study.test.values_R[:100])
        assert sums_R.tolist() == [math.fsum(products_F) for products_F in products_RF]


def test_the_rows_depend_on_the_seed_alone_and_are_the_same_everywhere(study: Dataset) -> None:
    digest = hashlib.sha256(study.train.values_R.tobytes() + study.test.values_R.tobytes())
    assert digest.hexdigest()[:16] == "d91bdcf1ecc50556"
    assert not np.array_equal(load_linear(4).train.values_R, study.train.values_R)
    with pytest.raises(DataError, match="seed"):
        load_linear(-1)
