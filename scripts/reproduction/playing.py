"""The cases of a study, each in a process of its own where several are played at a time."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeAlias

from scripts.reproduction.engine import ReproductionError
from scripts.reproduction.figure import FigureCase, FigurePlayed, play_figure
from scripts.reproduction.figures import FIGURES
from scripts.reproduction.studies import Case, Played, Setting, play

AnyCase: TypeAlias = Case | FigureCase
AnyPlayed: TypeAlias = Played | FigurePlayed


def _play(case: AnyCase) -> AnyPlayed:
    return play_figure(case) if isinstance(case, FigureCase) else play(case)


def _play_named(name: str, setting: Setting, seed: int) -> AnyPlayed:
    return _play(FigureCase(FIGURES[name], setting, seed))


def _submit(pool: Executor, case: AnyCase) -> Future[AnyPlayed]:
    """Let `pool` play `case`; a figure goes by its name, for its functions do not travel."""
    if isinstance(case, FigureCase):
        return pool.submit(_play_named, case.name, case.setting, case.seed)
    return pool.submit(_play, case)


def run(cases: Sequence[AnyCase], jobs: int) -> Generator[AnyPlayed]:
    """Play `cases`, up to `jobs` at a time, and give each as it ends.

    Raises `MarketError` if one cannot be played, or its process ends without an answer.
    """
    if jobs == 1 or len(cases) <= 1:
        yield from map(_play, cases)
        return
    others = multiprocessing.active_children()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process alone
    try:
        pool = ProcessPoolExecutor(
            min(jobs, len(cases)), mp_context=multiprocessing.get_context("spawn")
        )
        playing = [_submit(pool, case) for case in cases]
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for future in as_completed(playing):
            yield future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise ReproductionError(
            "a process ended in the middle of a case: out of memory?"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
