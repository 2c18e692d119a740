"""From a safetensors file of somebody's own to a model that may be computed with.

The file need not know of this market: its architecture is what the user says, or what the
metadata says, or what names and shapes leave no doubt about; its tensors are brought to the
family's names and to float32. What was taken for granted on the way is noted, for the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from broker_node.align.partial import require_widths_alone
from broker_node.align.stages import ArchitectureMismatchError
from broker_node.trying.errors import TryError
from broker_node.trying.stack import Shapes, layers_of, ordered, widths_of
from broker_node.verify.checks import verify
from broker_node.verify.computing import whole
from broker_node.verify.stages import Received, Verified
from node.params.adapters import Base
from node.params.architecture import FAMILIES, Architecture, layout, parse_architecture
from node.params.encoding import load_safetensors, weights_root
from node.params.errors import ProfileError
from node.params.families.base import MAX_PARAMETERS, MAX_TENSORS, ArchitectureError
from node.params.families.own import NAME as OWN
from node.params.families.own import OwnModule
from node.params.families.own_facts import facts_of
from node.params.merges import is_adapter
from node.params.peft import read_adapter
from node.params.profile import Limits, check_header
from node.protocol import bounded_json
from node.protocol.errors import MarketError, RemoteProtocolError

LIMITS: Final = Limits(tensors=MAX_TENSORS, total_bytes=8 * MAX_PARAMETERS)
"""Of one file: as many parameters as the largest model has, in float64."""
METADATA_KEY: Final = "pm-node.architecture"
"""Under which the architecture's text stands in a file that `pm-node` wrote."""
BASE_FILE: Final = "model.safetensors"
MAX_JSON_BYTES: Final = 1 << 20
STACKS: Final = ("mlp", "linear")
"""Families whose tensors are recognised under any names."""
COMPUTES_NOTHING: Final = "random"
_FLOATS: Final = {"F16", "BF16", "F64"}
_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "state_dict.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A model of a file, under the family's names and in float32."""

    path: Path
    model: Verified
    names: Mapping[str, str]
    """The family's name of a tensor → its name in the file."""
    beside: Mapping[str, torch.Tensor | str] = field(default_factory=dict, repr=False)
    """What else is in the file, by its name there: integers, which no merge touches, and other
    names of a tensor → the family's."""
    inferred: bool
    """Whether names and shapes alone say the architecture, which has activations as well."""
    notes: tuple[str, ...] = ()
    """What was changed in reading."""
    adapter: Verified | None = None
    """What the file holds, if adapters: `model` is then the whole model that they make."""

    @property
    def traded(self) -> Verified:
        """What is merged, and handed out: the adapter, else the model."""
        return self.adapter or self.model

    def named(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors of the family's names under those of this file."""
        named = {self.names[name]: tensor for name, tensor in tensors.items()}
        for name, held in self.beside.items():
            named[name] = (tensors[held] if isinstance(held, str) else held).clone()
        return named


def parse_flag(text: str) -> Architecture:
    """Read what ``--architecture`` says: ``mlp:784-256-10``, ``linear:64-10``, or a JSON file.

    Raises `TryError` that lists the families which are known.
    """
    return built(*flag_said(text))


def flag_said(text: str) -> tuple[str, str, Mapping[str, object]]:
    """Return what `built` takes, nothing of which is built yet. Raises `TryError`."""
    name, colon, widths = text.partition(":")
    path = Path(text)
    if not colon or path.suffix == ".json":
        return _of_json(path)
    numbers = widths.split("-")
    if name not in STACKS or not all(each.isascii() and each.isdecimal() for each in numbers):
        raise TryError(
            f"--architecture {text!r:.80} is none: write mlp:784-256-10 or linear:64-10, or name a "
            f"JSON file of {{name, config}}; {_known()}"
        )
    sizes = [int(each[:12]) for each in numbers]
    if name == "linear" and len(sizes) != 2:
        raise TryError(f"--architecture {text!r:.80}: linear has two widths; {_known()}")
    config = {"widths": sizes} if name == "mlp" else {"inputs": sizes[0], "outputs": sizes[1]}
    return f"--architecture {text:.80}", name, config


def _of_json(path: Path) -> tuple[str, str, Mapping[str, object]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (OSError, ValueError) as error:
        raise TryError(
            f"--architecture {str(path)!r:.80} is neither FAMILY:WIDTHS, such as mlp:784-256-10, "
            f"nor a JSON file that can be read; {_known()}"
        ) from error
    try:
        value: object = bounded_json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except ValueError as error:
        raise TryError(f"{path} is not JSON: {error!s:.120}") from error
    match value:
        case {"name": str(name), "config": dict(config), **more} if not more:
            return str(path), name, config
        case _:
            raise TryError(f'{path} must be {{"name": "mlp", "config": {{"widths": [784, 10]}}}}')


def built(what: str, name: str, config: Mapping[str, object]) -> Architecture:
    """Return an architecture that the user named by `what`. Raises `TryError`."""
    if name == COMPUTES_NOTHING:
        raise TryError(f"{what}: `{name}` computes nothing; {_known()}")
    try:
        return Architecture(name, config)
    except ArchitectureError as error:
        more = "" if name == OWN else f"; {_known()}"
        raise TryError(f"{what}: {error}{more}") from error


def _known() -> str:
    return f"families known are {', '.join(name for name in FAMILIES if name != COMPUTES_NOTHING)}"


def read_checkpoint(
    path: Path,
    *,
    architecture: Architecture | None = None,
    order: Sequence[str] = (),
    locked: bool = False,
) -> Checkpoint:
    """Return the model in a file; `architecture` if it is known already.

    `locked`: as for `load_safetensors`; of what is converted to float32 it means nothing.
    Raises `TryError` that names the file, what is wrong with it, and what to do.
    """
    try:
        header = check_header(path, limits=LIMITS)
        shapes = {spec.name: spec.shape for spec in header.layout}
        notes, inferred = [], False
        if architecture is None and METADATA_KEY in header.metadata:
            architecture = parse_architecture(header.metadata[METADATA_KEY])
            if architecture.name == COMPUTES_NOTHING:
                raise TryError(f"its metadata says `{COMPUTES_NOTHING}`, which computes nothing")
        if architecture is None:
            architecture, names = _inferred(shapes, order)
            inferred = architecture.name == "mlp"
        else:
            names = _matched(architecture, shapes, order)
        tensors = load_safetensors(path, header.layout, limits=LIMITS, locked=locked)
        merged = set(names.values())
        beside = _beside(architecture, names, {n: t for n, t in tensors.items() if n not in merged})
        for name, held in beside.items():
            if isinstance(held, str) and not torch.equal(tensors[name], tensors[names[held]]):
                raise TryError(f"{name} and {names[held]} are one tensor there, and differ here")
        dtypes = {spec.dtype for spec in header.layout if spec.name in merged} - {"F32"}
        if dtypes - _FLOATS:
            raise TryError(f"holds {', '.join(sorted(dtypes - _FLOATS))}; weights must be floats")
        if dtypes:
            notes.append(f"{path.name} was converted from {', '.join(sorted(dtypes))} to F32")
        model = admitted(architecture, {own: tensors[name].float() for own, name in names.items()})
    except TryError as error:
        raise TryError(f"{path}: {error}") from error
    except (ProfileError, RemoteProtocolError) as error:
        raise TryError(f"{path} cannot be used: {error}{_advice(error)}") from error
    return Checkpoint(
        path=path,
        model=model,
        names=names,
        beside=beside,
        inferred=inferred,
        notes=tuple(notes),
    )


def read_base(path: Path) -> Base:
    """Return the model that adapters are of; of a folder, that of its ``model.safetensors``.

    Raises `TryError` as `read_checkpoint`.
    """
    model = read_checkpoint(path / BASE_FILE if path.is_dir() else path).model
    if is_adapter(model.architecture):
        raise TryError(f"{path} holds adapters, and no base that they could be of")
    return Base(model.architecture, model.tensors, model.weights_root)


def admitted(architecture: Architecture, tensors: Mapping[str, torch.Tensor]) -> Verified:
    """Return tensors as a verified model; raises `RemoteProtocolError` as `verify`."""
    owned = {name: tensor.contiguous() for name, tensor in tensors.items()}
    root = weights_root(owned)
    return verify(Received(weights_root=root, architecture=architecture, tensors=owned))


def _advice(error: RemoteProtocolError) -> str:
    return {
        "not-finite": "; take a checkpoint from before it diverged",
        "bad-magnitude": "; weights past a million overflow float32 sums",
        "unknown-architecture": "" if "--module" in error.detail else f"; {_known()}",
        "wrong-base": "; name the weights that it was trained on with --base",
        "unsupported-adapter": "; plain LoRA of linear layers is taken, and nothing beside",
    }.get(error.reason, "")


def read_adapters(paths: Sequence[Path], base: Base) -> list[Checkpoint]:
    """Return the adapters in folders of PEFT, each with the whole model that it makes of `base`.

    Raises `TryError` naming the folder, and what is wrong with it.
    """
    found = []
    for path in paths:
        try:
            if not path.is_dir():
                raise TryError("is no folder of an adapter, and adapters merge with adapters alone")
            read = read_adapter(path, base)
            adapter = verify(
                Received(
                    weights_root=weights_root(read.tensors),
                    architecture=read.architecture,
                    tensors=read.tensors,
                    base=base,
                )
            )
            model = whole(adapter)
        except TryError as error:
            raise TryError(f"{path} {error}") from error
        except RemoteProtocolError as error:
            pickled = (path / "adapter_model.bin").exists() and error.reason == "unreadable"
            advice = "; a pickle is not opened: save it as safetensors" if pickled else ""
            raise TryError(f"{path} cannot be used: {error}{advice or _advice(error)}") from error
        found.append(Checkpoint(path=path, model=model, names={}, inferred=False, adapter=adapter))
    return found


def shown(architecture: Architecture) -> str:
    """Return an architecture in few words, ``mlp 784-256-10``."""
    match architecture.config:
        case {"widths": [*widths]}:
            return f"{architecture.name} {'-'.join(map(str, widths))}"
        case {"base": {"config": dict(config), "name": str(name)}, "modules": dict(modules)}:
            below = shown(Architecture(name, config))
            return f"adapters of {len(modules)} layers of {below}"
        case {"factory": str(factory), "input": [*sides]}:
            return f"{architecture.name} {factory} {'x'.join(map(str, sides))}"
        case {"inputs": inputs, "outputs": outputs}:
            return f"{architecture.name} {inputs}-{outputs}"
        case _:
            return f"{architecture.name} {architecture.text[:80]}"


def _inferred(shapes: Shapes, order: Sequence[str]) -> tuple[Architecture, dict[str, str]]:
    """Return what names and shapes leave no doubt about."""
    try:
        layers = ordered(layers_of(shapes), given=order)
        widths = widths_of(layers)
        architecture = (
            Architecture("linear", {"inputs": widths[0], "outputs": widths[1]})
            if len(layers) == 1
            else Architecture("mlp", {"widths": widths})
        )
    except TryError as error:
        if "--order" in str(error):
            raise
        raise TryError(
            f"{error}, so its architecture cannot be told; name it with --architecture, or by "
            f"--module and --input. {_known()[0].upper()}{_known()[1:]}; the closest is mlp, a "
            "chain of layers "
            "NAME.weight and NAME.bias"
        ) from error
    return architecture, _matched(architecture, shapes, order)


def _matched(architecture: Architecture, shapes: Shapes, order: Sequence[str]) -> dict[str, str]:
    """Return which tensor of the file is which of the family, by its name."""
    expected = {spec.name: spec.shape for spec in layout(architecture)}
    for prefix in ("", *_prefixes(shapes)):
        beside = {prefix + name for name in _not_traded(architecture)}
        held = {name: shape for name, shape in shapes.items() if name not in beside}
        if {prefix + name: shape for name, shape in expected.items()} == held:
            return {name: prefix + name for name in expected}
    if architecture.name not in STACKS:
        known = {n: shape for n, shape in shapes.items() if n not in _not_traded(architecture)}
        raise TryError(f"is no {shown(architecture)}: {_difference(expected, known)}")
    try:
        widths = list(architecture.config.get("widths", ()))  # type: ignore[call-overload]
        widths = widths or [architecture.config[key] for key in ("inputs", "outputs")]
        layers = ordered(layers_of(shapes), given=order, widths=widths)
    except TryError as error:
        raise TryError(f"is no {shown(architecture)}: {error}") from error
    if architecture.name == "linear":
        return {"weight": layers[0].weight, "bias": layers[0].bias}
    names = {f"layers.{at}.weight": layer.weight for at, layer in enumerate(layers)}
    return names | {f"layers.{at}.bias": layer.bias for at, layer in enumerate(layers)}


def _not_traded(architecture: Architecture) -> frozenset[str]:
    """Return what a module's own state has beside the tensors that are traded."""
    model = architecture.model
    return facts_of(model).beside if isinstance(model, OwnModule) else frozenset()


def _beside(
    architecture: Architecture, names: Mapping[str, str], rest: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor | str]:
    """Return what of a file is no tensor of the layout: integers, and other names of one."""
    if not rest:
        return {}
    assert isinstance(architecture.model, OwnModule)
    ties = facts_of(architecture.model).ties
    own, inside = next(iter(names.items()))
    prefix = inside.removesuffix(own)
    return {name: ties.get(name.removeprefix(prefix), tensor) for name, tensor in rest.items()}


def _prefixes(shapes: Shapes) -> list[str]:
    return [each for each in _PREFIXES if all(name.startswith(each) for name in shapes)]


def _difference(expected: Shapes, found: Shapes) -> str:
    for name, shape in expected.items():
        if name not in found:
            return f"it lacks {name}"
        if found[name] != shape:
            return f"{name} is {list(found[name])}, not {list(shape)}"
    return f"{next(name for name in found if name not in expected)} is too much"


def read_beside(
    path: Path, architecture: Architecture, *, order: Sequence[str] = (), locked: bool = False
) -> Checkpoint:
    """Return a model that is to go with one of `architecture`, whose hidden widths may be others.

    Raises `TryError` as `read_checkpoint`: of the two ways to read it, that of `architecture`.
    """
    try:
        return read_checkpoint(path, architecture=architecture, order=order, locked=locked)
    except TryError as error:
        try:
            found = read_checkpoint(path, order=order, locked=locked)
            require_widths_alone(architecture, found.model.architecture)
        except MarketError:
            raise error from None
        return found


def require_alike(buyer: Checkpoint, seller: Checkpoint) -> None:
    """Raise `TryError` unless both are of one architecture, but for their hidden widths."""
    ours, theirs = buyer.model.architecture, seller.model.architecture
    if ours == theirs:
        return
    try:
        require_widths_alone(ours, theirs)
    except ArchitectureMismatchError as error:
        raise TryError(
            f"{seller.path} is {shown(theirs)} and {buyer.path} is {shown(ours)}: only models of "
            f"one architecture can be merged, or of other hidden widths alone ({error})"
        ) from error
