"""How much memory it takes to root a large parameter set, and to merge two.

    python scripts/bench_memory.py [--gib 2] [--json]

A pair of perceptrons in shards of a layer each, a quarter of a GiB, is rooted and merged from the
disk (`node.params.sharded`), by a recipe that renumbers and rescales every unit. Each case is a
process of its own; *peak* is the most that it held at once (VmHWM), *above imports* is without what
it held after these. The last case does the same in memory, for a pair of two layers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  (the path above comes first)

from node.params.architecture import Architecture  # noqa: E402
from node.params.encoding import (  # noqa: E402
    load_safetensors,
    save_safetensors,
    weights_root,
)
from node.params.families.mlp import Mlp  # noqa: E402
from node.params.recipe import Recipe, apply_recipe, pack_scales  # noqa: E402
from node.params.sharded import merge_shards, open_set, root_of  # noqa: E402
from node.protocol.types import Millionths  # noqa: E402

WIDTH: Final = 8_192
MIB: Final = 1 << 20
LAYER_MIB: Final = 4 * WIDTH * WIDTH // MIB
IN_MEMORY: Final = 2
"""Layers of the pair that is merged in memory."""
ARCHITECTURE: Final = Architecture("mlp", {"widths": [WIDTH] * (IN_MEMORY + 1)})


def make(folder: Path, layers: int, seed: int) -> None:
    """Write a shard a layer, and their index."""
    generator = torch.Generator().manual_seed(seed)
    mapped: dict[str, str] = {}
    for layer in range(layers):
        name = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        tensors = {
            f"layers.{layer}.weight": torch.randn(WIDTH, WIDTH, generator=generator),
            f"layers.{layer}.bias": torch.randn(WIDTH, generator=generator),
        }
        save_safetensors(tensors, folder / name)
        mapped |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": mapped}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def recipe(layers: int) -> Recipe:
    generator = torch.Generator().manual_seed(7)
    groups = [f"hidden.{i}" for i in range(layers - 1)]
    return Recipe(
        permutations={
            group: tuple(torch.randperm(WIDTH, generator=generator).tolist()) for group in groups
        },
        scales={
            group: pack_scales(0.5 + torch.rand(WIDTH, generator=generator)) for group in groups
        },
        alpha=Millionths(300_000),
    )


def rooted(folder: Path, _: int) -> str:
    with open_set(folder / "base") as base:
        return root_of(base).hex()


def merged(folder: Path, layers: int) -> str:
    # of the family itself: the market takes no model of more than 1 GiB
    spec = Mlp((WIDTH,) * (layers + 1)).permutation_spec()
    with open_set(folder / "base") as base, open_set(folder / "sold") as sold:
        return merge_shards(base, sold, spec, recipe(layers), folder / "merged").hex()


def in_memory(folder: Path, layers: int) -> str:
    base, sold = (
        {
            name: tensor
            for layer in range(IN_MEMORY)
            for name, tensor in load_safetensors(
                folder / which / f"model-{layer + 1:05}-of-{layers:05}.safetensors"
            ).items()
        }
        for which in ("base", "sold")
    )
    found = apply_recipe(ARCHITECTURE, base, sold, recipe(IN_MEMORY))
    return weights_root(found).hex()


CASES: Final[Mapping[str, Callable[[Path, int], str]]] = {
    "verified and rooted": rooted,
    "merged shard by shard": merged,
    "merged in memory": in_memory,
}


def _peak() -> float:
    """Return the most memory that this program has held, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def play(case: str, folder: Path, layers: int) -> dict[str, float]:
    """Run one case here."""
    torch.set_num_threads(1)
    before, began = _peak(), time.perf_counter()
    CASES[case](folder, layers)
    return {"before": before, "peak": _peak(), "seconds": time.perf_counter() - began}


def rows(gib: float = 2) -> list[dict[str, Any]]:
    """The table of this benchmark; the ratio is to the largest shard."""
    layers = max(IN_MEMORY, round(gib * 1024 / LAYER_MIB))
    table = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, which in enumerate(("base", "sold", "merged")):
            (folder / which).mkdir()
            if which != "merged":
                make(folder / which, layers, seed)
        for case in CASES:
            here = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
            done = subprocess.run(
                [*here, "--layers", str(layers)], check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout)
            held = (IN_MEMORY if case == "merged in memory" else layers) * LAYER_MIB
            for what, value in (
                ("peak", found["peak"]),
                ("peak above imports", found["peak"] - found["before"]),
            ):
                table.append(
                    {
                        "case": f"{case}, {held / 1024:g} GiB: {what}",
                        "value": round(value, 1),
                        "unit": "MiB",
                        "against": f"largest shard, {LAYER_MIB} MiB",
                        "ratio": round(value / LAYER_MIB, 3),
                    }
                )
            seconds = round(found["seconds"], 1)
            table.append({"case": f"{case}, {held / 1024:g} GiB", "value": seconds, "unit": "s"})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(play(options.case, options.folder, options.layers)))
        return
    for row in rows(options.gib):
        print(json.dumps(row) if options.json else "  ".join(str(v) for v in row.values()))


if __name__ == "__main__":
    main()
