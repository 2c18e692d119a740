"""What a broker is told once, at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How one broker behaves. Durations are seconds."""

    fee_basis_points: int
    fund_seconds: int
    reveal_seconds: int
    """From the last moment to fund to the last moment to reveal."""
    grace_seconds: int
    dispute_window_seconds: int
    notice_seconds: int = 3_600
    max_trials_remembered: int = 4_096
    max_model_bytes: int = 16 * 1024**3
    max_models_held: int = 256
    receipt_seconds: int = 24 * 3_600
