"""``pm-node devnet``: a whole market on this machine, to a report and a settled ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.exits import DONE, FAILED, INTERRUPTED
from node.cli.invocation import Invocation
from node.config.kinds import display
from node.config.table import SETTINGS, ConfigError, Origin
from node.devnet import defaults
from node.devnet.arms import ARMS

if TYPE_CHECKING:
    from node.devnet.spec import RunSpec

FIRST_CHOICE: Final = "mnist"
SECOND_CHOICE: Final = "digits"
"""Where there is no MNIST, and nobody asked for it."""
_LEAVE: Final = re.compile(r"([0-9]{1,6})@([0-9]{1,6})")


def _as_setting(name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a reader of values of the kind and within the bounds of a node's own setting."""
    row = SETTINGS[name]

    def read(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else row.parse(text, Origin("flag", row.flag))
        except ConfigError as error:
            raise click.BadParameter(f"{display(text)} is not {row.expects}") from error

    return read


@click.command()
@click.option(
    "--agents",
    default=defaults.USUAL_AGENTS,
    show_default=True,
    type=click.IntRange(defaults.LEAST_AGENTS, defaults.MAX_AGENTS),
)
@click.option(
    "--arms",
    default=None,
    help=f"all, or some of {', '.join(ARMS)}, with commas between  "
    f"[default: {','.join(defaults.USUAL_ARMS)}; {','.join(defaults.DRILL_ARMS)} for "
    f"{defaults.DRILL}]",
)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 1_000))
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, defaults.MAX_SEED),
    help="the first seed",
)
@click.option(
    "--rounds",
    default=None,
    type=click.IntRange(1, 10_000),
    help=f"in which each agent may buy  [default: {defaults.USUAL_ROUNDS}; "
    f"{defaults.STUDY_ROUNDS} for {defaults.STUDY}, {defaults.DRILL_ROUNDS} for {defaults.DRILL}]",
)
@click.option(
    "--epochs-per-round",
    default=defaults.USUAL_EPOCHS_PER_ROUND,
    show_default=True,
    type=click.IntRange(0, 1_000),
)
@click.option(
    "--warmup-epochs",
    default=None,
    type=click.IntRange(0, 1_000),
    help=f"before the market opens  [default: {defaults.USUAL_WARMUP}; 0 for {defaults.STUDY}]",
)
@click.option(
    "--protocol",
    default="clean",
    show_default=True,
    type=click.Choice(["clean", "paper"]),
    help="which rows choose, score and report, and what is bought",
)
@click.option(
    "--mechanism",
    default=defaults.USUAL_MECHANISM,
    show_default=True,
    type=click.Choice(defaults.MECHANISMS),
    help="how prices are made: by each pair, in one call a round, or by rounds of a clearing house",
)
@click.option(
    "--entry-fee",
    default=None,
    callback=_as_setting("entry_fee"),
    help="part of the fee of a shapley round that is never given back, in wei  [default: 0]",
)
@click.option(
    "--performance-value",
    default=None,
    callback=_as_setting("performance_value"),
    help="what an accuracy of 1 is worth in a round, in wei  [default: one ether]",
)
@click.option(
    "--producers",
    default=None,
    callback=_as_setting("producers"),
    help="how many of the agents make a model to sell in a triplewin round  [default: 1]",
)
@click.option("--free", is_flag=True, help="trade without prices, as the paper's §6.1 does")
@click.option(
    "--dataset",
    default=None,
    type=click.Choice(defaults.DATASETS),
    help=f"[default: {FIRST_CHOICE}; {SECOND_CHOICE} where there is none]",
)
@click.option("--data-folder", default=None, type=click.Path(path_type=Path))
@click.option(
    "--endowment",
    default="paper",
    show_default=True,
    type=click.Choice(["paper", "dirichlet"]),
    help="who holds which rows",
)
@click.option(
    "--concentration",
    default=None,
    callback=_as_setting("concentration"),
    help="of the Dirichlet endowment  [default: 0.5]",
)
@click.option(
    "--fee-bps",
    default=defaults.USUAL_FEE_BASIS_POINTS,
    show_default=True,
    type=click.IntRange(0, 1_000),
)
@click.option(
    "--budget", default=None, callback=_as_setting("budget"), help="most an agent spends, in wei"
)
@click.option(
    "--layers",
    default=None,
    callback=_as_setting("layers"),
    help="of its model that each agent offers, as 0,1  [default: all]",
)
@click.option(
    "--strategies",
    default=None,
    help="of the agents, one for each, or some by number, as 0=lemon or *=truthful,1=shading: "
    f"{', '.join(defaults.STRATEGIES)}, or package.module:factory  [default: all "
    f"{defaults.USUAL_STRATEGY}]",
)
@click.option(
    "--shading",
    default=None,
    callback=_as_setting("shading"),
    help="how far the strategy `shading` is from the truth  [default: 0.2]",
)
@click.option(
    "--replicas",
    default=defaults.USUAL_REPLICAS,
    show_default=True,
    type=click.Choice(SETTINGS["replicas"].choices),
    help="what the broker does with a model that is like another agent's, unless receipts say why",
)
@click.option(
    "--control",
    default=None,
    type=click.Choice(SETTINGS["control"].choices),
    help="what buyers gain without a purchase, beside each gain: by one factor on their outputs, "
    "by fine-tuning on the broker's labels too  [default: tune]",
)
@click.option("--scan", is_flag=True, help="have the broker look at the merge of each trial")
@click.option(
    "--leave",
    multiple=True,
    metavar="AGENT@ROUND",
    help="an agent that goes away after a round, as 1@3; may be repeated",
)
@click.option("--quick", is_flag=True, help=f"{defaults.QUICK_ROUNDS} rounds only")
@click.option("--processes", is_flag=True, help="each node its own process, over loopback TCP")
@click.option("--name", default=None, help="folder under runs/  [default: by what is played]")
@click.option("--resume", is_flag=True, help="go on with an unfinished run of the same options")
@click.option("--force", is_flag=True, help="replace whatever run there is of this name")
@click.option("--allow-no-trade", is_flag=True, help="a run in which nobody traded is a success")
@click.option("--json", "as_json", is_flag=True, help="the report alone, on standard output")
@click.pass_obj
def devnet(node: Invocation, /, **options: Any) -> int:
    """Play a market on this machine: chain, broker and agents, to a settled ledger."""
    from rich.console import Console

    from node.devnet.experiment import Experiment, verdict
    from node.devnet.report.document import as_written
    from node.devnet.report.progress import Progress
    from node.devnet.report.table import print_report

    if options["resume"] and options["force"]:
        raise click.UsageError("--resume goes on with a run, --force begins anew: say one of them")
    if options["quick"] and options["rounds"]:
        raise click.UsageError(
            f"--quick is {defaults.QUICK_ROUNDS} rounds, --rounds another number: say one of them"
        )
    as_json = options["as_json"] or node.json_output
    spec = _spec(options)
    console = Console(stderr=True, quiet=as_json)
    with Progress(metric=spec.metric, console=console) as progress:
        experiment = Experiment(spec, progress, resume=options["resume"], force=options["force"])
        report = as_written(experiment.run())
    if as_json:
        click.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        print_report(report, spec.folder)
    if report["interrupted"]:
        click.echo(
            f"pm-node: interrupted; the same options and --resume go on with {spec.folder} "
            "(with make: ARGS=--resume)",
            err=True,
        )
        return INTERRUPTED
    fault = verdict(report, allow_no_trade=options["allow_no_trade"])
    if fault:
        click.echo(f"pm-node: {fault}", err=True)
    return FAILED if fault else DONE


def _spec(options: dict[str, Any]) -> RunSpec:
    """Return what was typed. Raises `DataError` if its data set is not there."""
    import dataclasses

    from node.devnet.folder import name_of
    from node.devnet.spec import RUNS, RunSpec
    from node.protocol.types import Millionths

    dataset, notes = _available(options["dataset"], options["data_folder"])
    rounds = defaults.QUICK_ROUNDS if options["quick"] else options["rounds"]
    warmup, concentration = options["warmup_epochs"], options["concentration"]
    first, shading = options["seed"], options["shading"]
    spec = RunSpec(
        folder=RUNS,
        dataset=dataset,
        protocol=options["protocol"],
        arms=_arms(options["arms"], dataset),
        seeds=tuple(range(first, first + options["seeds"])),
        agents=options["agents"],
        rounds=defaults.rounds_of(dataset) if rounds is None else rounds,
        epochs_per_round=options["epochs_per_round"],
        warmup_epochs=defaults.warmup_of(dataset) if warmup is None else warmup,
        priced=not options["free"],
        endowment=options["endowment"],
        concentration=Millionths(concentration or defaults.USUAL_CONCENTRATION),
        fee_basis_points=options["fee_bps"],
        budget=options["budget"],
        layers=options["layers"] or (),
        strategies=_strategies(options["strategies"], options["agents"]),
        shading=Millionths(defaults.USUAL_SHADING if shading is None else shading),
        replicas=options["replicas"],
        scan=options["scan"],
        control=options["control"] or "",
        leaves=_leaves(options["leave"]),
        data_folder=options["data_folder"],
        processes=options["processes"],
        mechanism=options["mechanism"],
        **{n: options[n] for n in ("entry_fee", "performance_value", "producers") if options[n]},
        notes=notes,
    )
    name = name_of(spec) if options["name"] is None else options["name"]
    return dataclasses.replace(spec, folder=_folder(RUNS, name))


def _folder(runs: Path, name: str) -> Path:
    """Return where the run `name` is, which is never the folder of all runs."""
    try:
        folder = (runs / name).resolve()
        all_of_them = runs.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise click.BadParameter(
            f"{name!r} names no folder: {error}", param_hint="--name"
        ) from error
    if folder == all_of_them or folder in all_of_them.parents:
        raise click.BadParameter(
            f"{name!r} is {folder}, which holds more than one run; name a folder in {runs}",
            param_hint="--name",
        )
    return folder


def _arms(text: str | None, dataset: str) -> tuple[str, ...]:
    if text is None:
        return defaults.arms_of(dataset)
    names = tuple(ARMS) if text == "all" else tuple(n.strip() for n in text.split(",") if n.strip())
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise click.BadParameter(
            f"{unknown[0] if unknown else text!r} is no arm; there are all, {', '.join(ARMS)}",
            param_hint="--arms",
        )
    return tuple(name for name in ARMS if name in names)


def _strategies(text: str | None, agents: int) -> tuple[str, ...]:
    """Read ``a,b`` as one for each agent, or ``*=a,1=b`` by number; who is not named is usual."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not any("=" in word for word in words):
        return tuple(words)
    named: dict[str, str] = {}
    for word in words:
        number, equals, name = word.partition("=")
        known = number == "*" or (number.isdecimal() and number in map(str, range(agents)))
        if not (known and equals and name) or number in named:
            raise click.BadParameter(
                f"{display(word)} is not NUMBER=STRATEGY with an agent of 0 to {agents - 1} (or * "
                "for all others), each once",
                param_hint="--strategies",
            )
        named[number] = name
    others = named.get("*", defaults.USUAL_STRATEGY)
    return tuple(named.get(str(number), others) for number in range(agents))


def _leaves(texts: tuple[str, ...]) -> dict[int, int]:
    leaves: dict[int, int] = {}
    for text in texts:
        match = _LEAVE.fullmatch(text)
        if match is None:
            raise click.BadParameter(
                f"{text!r} is not AGENT@ROUND, as in 1@3", param_hint="--leave"
            )
        agent, after = int(match[1]), int(match[2])
        if agent in leaves:
            raise click.BadParameter(
                f"agent {agent} leaves after round {leaves[agent]} already, not {text!r} too",
                param_hint="--leave",
            )
        leaves[agent] = after
    return leaves


def _available(dataset: str | None, folder: Path | None) -> tuple[str, tuple[str, ...]]:
    """Return the data set, and what there is to say of it.

    Raises `DataError` if it is not there; of one that nobody asked for there is a second choice.
    """
    from node.data.datasets import locate
    from node.data.files import DataError
    from node.data.folder import default_data_folder

    if dataset == defaults.DRILL:
        return dataset, ()
    try:
        locate(dataset or FIRST_CHOICE, folder or default_data_folder())
    except DataError as error:
        if dataset is not None or folder is not None:
            raise
        click.echo(f"{error}; going on with {SECOND_CHOICE}", err=True)
        return SECOND_CHOICE, (f"There is no MNIST on this machine: {SECOND_CHOICE} instead.",)
    return dataset or FIRST_CHOICE, ()
