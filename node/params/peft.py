"""Adapters in the folders of PEFT: `adapter_config.json` beside `adapter_model.safetensors`.

A folder is a stranger's. The tensors are of the strict profile (`node.params.profile`), of just
the layout that the configuration gives for the base at hand; pickles are never opened, and no
pattern is run as a regular expression. A folder adds, as reasons of a `ProfileError`:

| the configuration must                                    | or else the reason is     |
|-----------------------------------------------------------|---------------------------|
| be one JSON object of bounded size, no key twice          | ``malformed-config``      |
| be of plain LoRA: nothing beside A and B, no other scale  | ``unsupported-adapter``   |
| name ranks and alphas that are whole and bounded          | ``bad-rank``, ``bad-alpha``|
| target linear layers of the base, or what was written     | ``wrong-base``            |
| for these weights by `write_adapter`                      |                           |
| have the rank that the factors have                       | ``wrong-rank``            |
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from node.params.adapters import Adapter, Base, lora_of, require_base
from node.params.architecture import Architecture, parse_architecture
from node.params.encoding import load_safetensors, save_safetensors
from node.params.errors import ProfileError
from node.params.families.base import ArchitectureError
from node.params.families.lora import MAX_ALPHA, MAX_RANK, factor_names, linear_modules
from node.params.profile import Header, check_header, open_regular
from node.protocol import bounded_json
from node.protocol.errors import LocalProtocolError
from node.protocol.kinship import ADAPTERS

CONFIG: Final = "adapter_config.json"
TENSORS: Final = "adapter_model.safetensors"
METADATA_KEY: Final = "pm-node.architecture"
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_PATTERNS: Final = 1_000

_UNHEEDED: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "layers_pattern",
        "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision",
        "task_type",
    }
)  # fmt: skip
"""What changes neither tensors nor what they add. A name of a base is no proof of one."""
_HEEDED: Final = frozenset(
    {
        "alpha_pattern", "exclude_modules", "init_lora_weights", "lora_alpha", "peft_type", "r",
        "rank_pattern", "target_modules",
    }
)  # fmt: skip
_HARMLESS_STARTS: Final = (None, True, False, "gaussian", "eva", "orthogonal")
"""Other initialisations change the base's own weights (PiSSA, OLoRA, LoftQ, CorDA)."""
_LITERAL: Final = re.compile(r"[A-Za-z0-9_.\-]{1,256}")


def read_adapter(folder: Path, base: Base) -> Adapter:
    """Read the adapter in `folder`, of the model that `base` is.

    Raises `ProfileError` for anything else, and `ArchitectureError` for an adapter that is past
    what an architecture may describe.
    """
    config = _read_config(folder / CONFIG)
    _require_plain(config)
    linear = linear_modules(base.architecture.model.layout())
    weights = {spec.name for spec in base.architecture.model.layout()}
    paths = _targets(config, linear, weights)
    ranks, alphas = _pattern(config, "rank_pattern"), _pattern(config, "alpha_pattern")
    modules = {
        path: [
            _whole(_matched(ranks, path, config.get("r", 8)), MAX_RANK, "bad-rank", path),
            _whole(
                _matched(alphas, path, config.get("lora_alpha", 8)), MAX_ALPHA, "bad-alpha", path
            ),
        ]
        for path in paths
    }
    architecture = Architecture(
        ADAPTERS,
        {
            "base": {"config": base.architecture.config, "name": base.architecture.name},
            "modules": modules,
            "root": base.root.hex(),
        },
    )
    header = check_header(folder / TENSORS)
    _require_written_for(header, base)
    _require_ranks(header, modules)
    expected = lora_of(architecture).layout()
    return Adapter(architecture, load_safetensors(folder / TENSORS, expected))


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `adapter` as PEFT reads it, bound to its base by the file's metadata.

    The configuration comes last, so that a folder without one is no adapter.
    """
    lora = adapter.lora
    first = lora.modules[0]
    config = {
        "alpha_pattern": {each.path: each.alpha for each in lora.modules},
        "base_model_name_or_path": None,
        "bias": "none",
        "lora_alpha": first.alpha,
        "peft_type": "LORA",
        "r": first.rank,
        "rank_pattern": {each.path: each.rank for each in lora.modules},
        "target_modules": [each.path for each in lora.modules],
    }
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", METADATA_KEY: adapter.architecture.text}
    save_safetensors(adapter.tensors, folder / TENSORS, metadata)
    draft = folder / f".{CONFIG}.draft"
    draft.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="ascii")
    draft.replace(folder / CONFIG)


def _read_config(path: Path) -> dict[str, Any]:
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > MAX_CONFIG_BYTES:
            raise ProfileError("malformed-config", f"{size} bytes, allowed {MAX_CONFIG_BYTES}")
        data = os.pread(descriptor, MAX_CONFIG_BYTES, 0)
    try:
        value = bounded_json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProfileError("malformed-config", f"not JSON: {error!s:.120}") from error
    if not isinstance(value, dict):
        raise ProfileError("malformed-config", "not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_constant(text: str) -> None:
    raise ValueError(f"no number: {text}")


def _require_plain(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _unsupported("peft_type", config.get("peft_type"))
    start = config.get("init_lora_weights")
    if not any(start is each or start == each for each in _HARMLESS_STARTS):
        raise _unsupported("init_lora_weights", start)
    for key, value in config.items():
        inert = value in (None, False, "none") or value in ([], {})
        if key not in _UNHEEDED | _HEEDED and not inert:
            raise _unsupported(key, value)


def _unsupported(key: str, value: object) -> ProfileError:
    return ProfileError("unsupported-adapter", f"{key!r:.80} of {value!r:.80}")


def _names(config: Mapping[str, Any], key: str) -> list[str]:
    value = config.get(key)
    named = [] if value is None else value
    if not isinstance(named, list) or len(named) > MAX_PATTERNS:
        raise _unsupported(key, value)
    if not all(isinstance(each, str) and _LITERAL.fullmatch(each) for each in named):
        raise _unsupported(key, value)
    return named


def _pattern(config: Mapping[str, Any], key: str) -> dict[str, object]:
    value = config.get(key)
    found = {} if value is None else value
    if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
        raise _unsupported(key, value)
    if not all(_LITERAL.fullmatch(each) for each in found):
        raise _unsupported(key, value)
    return found


def _matches(path: str, name: str) -> bool:
    """Whether PEFT takes `name` for this module: its path, or the end of it."""
    return path == name or path.endswith(f".{name}")


def _matched(pattern: Mapping[str, object], path: str, default: object) -> object:
    return next((value for name, value in pattern.items() if _matches(path, name)), default)


def _targets(
    config: Mapping[str, Any], linear: Mapping[str, object], weights: set[str]
) -> Sequence[str]:
    targets, left_out = _names(config, "target_modules"), _names(config, "exclude_modules")
    if not targets:
        raise _unsupported("target_modules", config.get("target_modules"))
    modules = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    for target in targets:
        if not any(_matches(path, target) for path in modules):
            raise ProfileError("wrong-base", f"the base has no module {target!r}"[:200])
    found = [
        path
        for path in sorted(modules)
        if any(_matches(path, target) for target in targets)
        and not any(_matches(path, each) for each in left_out)
    ]
    for path in found:
        if path not in linear:
            raise _unsupported("target_modules", path)
    if not found:
        raise _unsupported("exclude_modules", left_out)
    return found


def _whole(value: object, most: int, reason: str, path: str) -> int:
    """Return a whole number, which PEFT may have written with a point."""
    if type(value) is float and value.is_integer() and abs(value) <= most:
        value = int(value)
    if type(value) is not int or not 1 <= value <= most:
        raise ProfileError(reason, f"{value!r:.60} for {path:.100}, of 1 … {most}")
    return value


def _require_written_for(header: Header, base: Base) -> None:
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return
    try:
        lora = lora_of(parse_architecture(text))
    except (ArchitectureError, LocalProtocolError) as error:
        raise ProfileError("wrong-base", f"the file says {error!s:.150}") from error
    require_base(lora, base.architecture, base.root)


def _require_ranks(header: Header, modules: Mapping[str, Sequence[int]]) -> None:
    """Name a rank as such; `load_safetensors` refuses all other shapes."""
    shapes = {spec.name: spec.shape for spec in header.layout}
    for path, (rank, _) in modules.items():
        for name, axis in zip(factor_names(path), (0, 1), strict=True):
            shape = shapes.get(name, ())
            if len(shape) == 2 and shape[axis] != rank:
                raise ProfileError("wrong-rank", f"{name}: {shape[axis]}, not {rank}")
