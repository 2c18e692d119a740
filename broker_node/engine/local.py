"""The engine in the broker's own process: a pool of its threads."""

from __future__ import annotations

from pathlib import Path

from broker_node.appraisal import Appraiser, Remeasured, Trial
from broker_node.engine.engine import EngineSettings
from broker_node.evaluate.device import device_of
from broker_node.verify.stages import Verified
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.types import Digest


class LocalEngine:
    """Computes in the thread that asks; PyTorch is without the interpreter's lock meanwhile."""

    def __init__(self, appraiser: Appraiser, settings: EngineSettings | None = None) -> None:
        """`settings.workers` is how many threads may ask at once.

        Raises `LocalProtocolError` for a device that is not here.
        """
        settings = settings or EngineSettings()
        device_of(settings.device)
        self._appraiser = appraiser
        self.at_once = settings.workers
        self.validation_root = appraiser.validation_root
        self.validation_rows = appraiser.validation_rows
        self.rows = appraiser.rows
        self.probes_RF = appraiser.probes_RF
        self.adapter_base = appraiser.adapter_base

    def screen(self, offer: Offer) -> None:
        self._appraiser.screen(offer)

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        return self._appraiser.admit(blob, offer)

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        return self._appraiser.measure(base, sold, task=task, notice=notice)

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        return self._appraiser.replay(subject, recipe, base, sold)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass
