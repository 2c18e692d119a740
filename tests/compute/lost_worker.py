"""An appraiser whose first trial waits until somebody ends its process."""

from __future__ import annotations

import os
import time
from pathlib import Path

from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.protocol.offer import BrokerNotice
from node.protocol.types import Digest

LONGEST = 120.0


class WaitingAppraiser(MarketAppraiser):
    """Says in a folder which process has its first trial; every further one is measured."""

    def __init__(self, validation: ValidationSet, folder: Path, *, always: bool = False) -> None:
        super().__init__(validation, classes=10)
        self._folder = folder
        self._always = always

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        if self._always:
            os._exit(7)
        first = self._folder / "pid"
        if not first.exists():
            draft = self._folder / "draft"
            draft.write_text(str(os.getpid()))
            draft.rename(first)
            time.sleep(LONGEST)
        return super().measure(base, sold, task=task, notice=notice)
