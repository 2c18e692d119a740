"""What pairs of models were found to be worth: each is measured once, one after the other."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import trio

from broker_node.appraisal import Appraiser, Trial
from broker_node.findings import ComputedOtherwise, MergeScanned
from broker_node.negotiation import Tried
from broker_node.scanning import scan_of
from broker_node.verify.stages import Verified
from node.chronicle import TrialDone
from node.observe import Observer
from node.protocol.offer import BrokerNotice
from node.protocol.types import Digest

_Pair = tuple[Digest, Digest, str, str, tuple[int, ...], Digest]
"""Of which a measurement is: base, what is sold, architecture of each, layers sold, notice.

Adapters of one root may be told apart by their scale alone, which stands in the architecture."""


class Trials:
    """The latest trials by name, and the latest measurements by pair.

    An offer can be signed anew as often as its seller likes, and is another trial each time; but
    what is measured depends on the models alone, and is not measured again.
    """

    def __init__(
        self,
        appraiser: Appraiser,
        compute: trio.CapacityLimiter,
        observer: Observer,
        most: int,
        *,
        scan: bool = False,
    ) -> None:
        """`compute` is waited for, with whatever else computes; `most` of each are kept.

        `scan`: look at each merge too, once, and tell the log alone what was found.
        """
        self._appraiser: Final = appraiser
        self._compute: Final = compute
        self._observer: Final = observer
        self._most: Final = most
        self._scan: Final = scan
        self._tried: OrderedDict[Digest, Tried] = OrderedDict()
        self._measured: OrderedDict[_Pair, Trial] = OrderedDict()

    def find(self, trial_id: Digest) -> Tried | None:
        """Return a trial that was kept."""
        return self._tried.get(trial_id)

    def keep(self, trial_id: Digest, tried: Tried) -> None:
        """Keep a trial; the oldest goes if there are too many."""
        self._tried[trial_id] = tried
        while len(self._tried) > self._most:
            self._tried.popitem(last=False)

    async def measure(
        self,
        trial_id: Digest,
        base: Verified,
        sold: Verified,
        task: str,
        notice: tuple[Digest, BrokerNotice],
    ) -> Trial:
        """Return what was measured of these models, or measure it, in a thread."""
        kind = (base.architecture.text, sold.architecture.text, tuple(sold.layers))
        pair = (base.weights_root, sold.weights_root, *kind, notice[0])
        known = self._measured.get(pair)
        if known is not None:
            return known
        begun = trio.current_time()
        trial = await trio.to_thread.run_sync(
            lambda: self._appraiser.measure(base, sold, task=task, notice=notice),
            limiter=self._compute,
        )
        self._measured[pair] = trial
        while len(self._measured) > self._most:
            self._measured.popitem(last=False)
        for said in trial.fallbacks:
            self._observer.emit(ComputedOtherwise(during="trial", reason=said))
        found = trial.evaluation
        self._observer.emit(
            TrialDone(
                trial_id=trial_id,
                task=task,
                gain=found.gain,
                bound=found.bound,
                alpha=found.alpha,
                control=trial.control,
                tuned=trial.tuned,
                doubts=trial.doubts,
                seconds=round(trio.current_time() - begun, 3),
            )
        )
        if self._scan:  # after it is kept: a look that is cut off costs no measurement
            seen = await trio.to_thread.run_sync(
                lambda: scan_of(trial, base, sold, self._appraiser.probes_RF),
                limiter=self._compute,
            )
            self._observer.emit(
                MergeScanned(
                    trial_id=trial_id, verdict=seen.verdict, found=seen.found, rows=seen.rows
                )
            )
        return trial
