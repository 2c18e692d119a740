"""Mechanisms by name."""

from __future__ import annotations

from typing import Final

from broker_node.mechanisms.base import Mechanism
from broker_node.mechanisms.bayesian_ask import BayesianAsk
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from broker_node.mechanisms.eg import EisenbergGale
from broker_node.mechanisms.fusion import Fusion
from broker_node.mechanisms.gain_bounds import GainBounds
from broker_node.mechanisms.kplus1 import KPlusOne
from broker_node.mechanisms.max_min import MaxMin
from broker_node.mechanisms.mcafee import McAfee
from broker_node.mechanisms.nash import Nash
from broker_node.mechanisms.procurement import Procurement
from broker_node.mechanisms.proportional import Proportional
from broker_node.mechanisms.shapley import Shapley
from broker_node.mechanisms.social_welfare import SocialWelfare
from broker_node.mechanisms.triplewin import TripleWin
from broker_node.mechanisms.vcg import Vcg

MECHANISMS: Final[dict[str, Mechanism]] = {
    mechanism.name: mechanism
    for mechanism in (
        Nash(),
        BayesianAsk(),
        GainBounds(),
        Procurement(),
        McAfee(),
        KPlusOne(),
        Vcg(),
        Fusion(),
        Shapley(),
        TripleWin(),
        ExtendedEisenbergGale(),
        EisenbergGale(),
        Proportional(),
        SocialWelfare(),
        MaxMin(),
    )
}
