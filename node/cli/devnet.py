"""``pm-node devnet``: a whole market on this machine, to a report and a settled ledger."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import click

from node.cli.exits import DONE, FAILED, INTERRUPTED
from node.cli.invocation import Invocation

DEFAULT_ARMS: Final = "out-of-market,aligned"
QUICK_ROUNDS: Final = 8
ROUNDS: Final = {"linear": 100, "random": 5}
USUAL_ROUNDS: Final = 45
"""With five epochs before, the fifty of Train 'n Trade's configuration."""


@click.command()
@click.option("--agents", default=2, show_default=True, type=click.IntRange(2, 64))
@click.option(
    "--arms",
    default=DEFAULT_ARMS,
    show_default=True,
    help="all, or some of out-of-market, fedavg, unaligned, aligned, with commas between",
)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="the first seed")
@click.option(
    "--rounds", default=None, type=click.IntRange(1, 10_000), help="in which each agent may buy"
)
@click.option("--epochs-per-round", default=1, show_default=True, type=click.IntRange(0, 1_000))
@click.option(
    "--warmup-epochs",
    default=None,
    type=click.IntRange(0, 1_000),
    help="before the market opens  [default: 5; 0 for linear]",
)
@click.option(
    "--protocol",
    default="clean",
    show_default=True,
    type=click.Choice(["clean", "paper"]),
    help="which rows choose, score and report, and what is bought",
)
@click.option("--free", is_flag=True, help="trade without prices, as the paper's §6.1 does")
@click.option(
    "--dataset",
    default="mnist",
    show_default=True,
    type=click.Choice(
        ["mnist", "fashion", "digits", "linear", "cifar10", "tiny-imagenet", "random"]
    ),
)
@click.option("--data-folder", default=None, type=click.Path(path_type=Path))
@click.option(
    "--endowment",
    default="paper",
    show_default=True,
    type=click.Choice(["paper", "dirichlet"]),
    help="who holds which rows",
)
@click.option("--concentration", default=0.5, show_default=True, help="of the Dirichlet endowment")
@click.option("--fee-bps", default=200, show_default=True, type=click.IntRange(0, 1_000))
@click.option("--budget", default=None, type=click.IntRange(0), help="most an agent spends, in wei")
@click.option(
    "--leave",
    multiple=True,
    metavar="AGENT@ROUND",
    help="an agent that goes away after a round, as 1@3; may be repeated",
)
@click.option("--quick", is_flag=True, help=f"{QUICK_ROUNDS} rounds only")
@click.option("--processes", is_flag=True, help="each node its own process, over loopback TCP")
@click.option("--name", default=None, help="folder under runs/  [default: by what is played]")
@click.option("--resume", is_flag=True, help="go on with an interrupted run of the same options")
@click.option("--allow-no-trade", is_flag=True, help="a run in which nobody traded is a success")
@click.option("--json", "as_json", is_flag=True, help="the report alone, on standard output")
@click.pass_obj
def devnet(node: Invocation, /, **options: Any) -> int:
    """Play a market on this machine: chain, broker and agents, to a settled ledger."""
    from rich.console import Console

    from node.devnet.experiment import Experiment, verdict
    from node.devnet.report.progress import Progress
    from node.devnet.report.table import print_report
    from node.devnet.spec import RUNS, RunSpec
    from node.protocol.types import Millionths, Wei

    as_json = options["as_json"] or node.json_output
    dataset = _available(options["dataset"], options["data_folder"])
    warmup = options["warmup_epochs"]
    warmup = (0 if dataset in ("linear", "random") else 5) if warmup is None else warmup
    rounds = options["rounds"] or ROUNDS.get(dataset, USUAL_ROUNDS)
    if options["quick"]:
        rounds = options["rounds"] or QUICK_ROUNDS
    arms = _arms(options["arms"], dataset)
    first, budget = options["seed"], options["budget"]
    name = options["name"] or _name(dataset, options, arms)
    spec = RunSpec(
        folder=(RUNS / name).resolve(),
        dataset=dataset,
        protocol=options["protocol"],
        arms=arms,
        seeds=tuple(range(first, first + options["seeds"])),
        agents=options["agents"],
        rounds=rounds,
        epochs_per_round=options["epochs_per_round"],
        warmup_epochs=warmup,
        priced=not options["free"],
        endowment=options["endowment"],
        concentration=Millionths(round(options["concentration"] * 1_000_000)),
        fee_basis_points=options["fee_bps"],
        budget=None if budget is None else Wei(budget),
        leaves=dict(_leave(text) for text in options["leave"]),
        data_folder=options["data_folder"],
        processes=options["processes"],
    )
    console = Console(stderr=True, quiet=as_json)
    with Progress(metric=spec.metric, console=console) as progress:
        report = Experiment(spec, progress, resume=options["resume"]).run()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        print_report(report, spec.folder)
        cost = report["machine"]
        if "seconds a round" in cost:
            click.echo(
                f"{spec.agents} agents: {cost['seconds a round']} s a round, "
                f"{cost['seconds a round and agent']} s an agent; "
                f"{cost['memory an agent, MB']} MB an agent, {cost['peak memory, MB']} MB in all"
            )
    if report["interrupted"]:
        click.echo(
            f"pm-node: interrupted; `--resume --name {name}` with the same options goes on",
            err=True,
        )
        return INTERRUPTED
    fault = verdict(report, allow_no_trade=options["allow_no_trade"])
    if fault:
        click.echo(f"pm-node: {fault}", err=True)
    return FAILED if fault else DONE


def _arms(text: str, dataset: str) -> tuple[str, ...]:
    from node.devnet.arms import ARMS

    if dataset == "random":
        return ("aligned",)
    names = tuple(ARMS) if text == "all" else tuple(n.strip() for n in text.split(",") if n.strip())
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise click.BadParameter(
            f"{unknown[0] if unknown else text!r} is no arm; there are all, {', '.join(ARMS)}",
            param_hint="--arms",
        )
    return tuple(name for name in ARMS if name in names)


def _leave(text: str) -> tuple[int, int]:
    agent, at, round_ = text.partition("@")
    if not (at and agent.isdecimal() and round_.isdecimal()):
        raise click.BadParameter(f"{text!r} is not AGENT@ROUND, as in 1@3", param_hint="--leave")
    return int(agent), int(round_)


def _name(dataset: str, options: dict[str, Any], arms: tuple[str, ...]) -> str:
    parts = [dataset, f"{options['agents']}-agents"]
    parts += ["paper"] if options["protocol"] == "paper" else []
    parts += ["free"] if options["free"] else []
    parts += [f"{len(arms)}-arms"] if len(arms) > 2 else []
    parts += ["processes"] if options["processes"] else []
    parts += [f"seed-{options['seed']}"] if options["seeds"] == 1 else [f"{options['seeds']}-seeds"]
    return "-".join(parts)


def _available(dataset: str, folder: Path | None) -> str:
    """Return the data set, or digits where there is no source of MNIST at all; says so."""
    from node.data.datasets import locate
    from node.data.files import DataError
    from node.data.folder import default_data_folder

    if dataset == "random":
        return dataset
    try:
        locate(dataset, folder or default_data_folder())
    except DataError as error:
        if dataset != "mnist" or folder is not None:
            raise
        print(f"no MNIST ({error}): going on with digits", file=sys.stderr)  # noqa: T201
        return "digits"
    return dataset
