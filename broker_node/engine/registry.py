"""The engines by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker_node.appraisal import Appraiser
from broker_node.engine.engine import Engine, EngineSettings, Tell
from broker_node.engine.local import LocalEngine
from broker_node.engine.ray_engine import RayEngine

EngineFactory = Callable[[Appraiser, EngineSettings, Tell], Engine]

ENGINES: Final[dict[str, EngineFactory]] = {
    "local": lambda appraiser, settings, _: LocalEngine(appraiser, settings),
    "ray": RayEngine,
}
