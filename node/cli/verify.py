"""``pm-node verify``: whether a receipt holds, by measuring again what it says was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.invocation import Invocation, on_node
from node.cli.own_modules import allow_as_said, module_option
from node.cli.trial_options import rows_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from broker_node.appraisal import Appraiser
    from broker_node.quorum.receipts import ReceiptFile
    from node.config.table import Config
    from node.params.adapters import Base
    from node.params.architecture import Architecture
    from node.protocol.types import Address

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
WEIGHTS: Final = click.Path(exists=True, path_type=Path)
SHORTEST_PREFIX: Final = 4
FITTED: Final = "whether the recipe was fitted to the rows that score it: no replay can tell"


@click.command()
@click.argument("receipt", metavar="RECEIPT.json", type=FILE)
@click.option("--base", type=WEIGHTS, required=True, help="the buyer's own weights")
@click.option(
    "--sold",
    type=WEIGHTS,
    required=True,
    multiple=True,
    help="what was sold; of a trial, each model",
)
@click.option(
    "--merged", type=WEIGHTS, default=None, help="of a trial: the merge, if no recipe is told"
)
@rows_options
@module_option
@click.option(
    "--no-notice", is_flag=True, help="take a file without the broker's terms, which hold its rows"
)
@on_node
def verify(
    node: Invocation,
    /,
    receipt: Path,
    base: Path,
    sold: tuple[Path, ...],
    merged: Path | None,
    no_notice: bool,
    **options: Any,
) -> None:
    """Measure again what RECEIPT.json says was measured.

    `pm-node trade receipt` writes one of a trade, `pm-node try --out` one of a trial. The rows of
    a trial are those of --data; how they were normalised the receipt says.

    Weights are safetensors, or as a node keeps them: in its data directory, blobs/ROOT, where ROOT
    is the receipt's base_root or sold_root without 0x. Adapters are folders of PEFT, of the model
    in --adapter-base. Of a model that a function of yours builds, name that with --module: it is
    built for rows of the shape that the receipt says, and run.

    The rows of a trade are those of --dataset in --data-folder, divided as --protocol says. With
    --chain and --escrow, those who signed must have seats in that escrow now. Without --escrow it
    is one that the data directory deployed on the chain.

    Exit code 0: it holds. 1: it does not; the line says
    which field is said to be what, and is what.

    What is measured is the receipt's own recipe (permutation, scales, share): that it was fitted to
    the rows goes unseen, for what it gains on them it does gain. Brokers of a quorum make one of
    their own before they sign.
    """
    from broker_node.quorum.receipts import check_measured_again, check_signed, model_of
    from node.cli.receipt_file import read
    from node.cli.try_receipt_file import is_of_trial
    from node.cli.verify_try import verify_trial
    from node.params.architecture import parse_architecture
    from node.params.families.factories import allow_said
    from node.protocol.errors import RemoteProtocolError
    from node.roles.shells import adapter_base

    allow_said(node.load().config.modules)
    if is_of_trial(receipt):
        verify_trial(node, receipt, base, sold, merged, options)
        return
    if len(sold) != 1:
        raise click.UsageError(f"a trade sells one model, and --sold names {len(sold)}")
    if options["data"] or merged:
        raise click.UsageError(
            "--data and --merged are for a trial's receipt; a trade's rows are those of --dataset"
        )
    file, config = read(receipt), node.load().config
    if file.notice is None and not no_notice:
        raise RemoteProtocolError(
            "notice",
            "notice is null: the broker's terms are not in the file, and nobody can see who chose "
            "the rows; ask for a whole one, or say --no-notice",
        )
    check_signed(file, shared_rows=config.protocol == "paper")
    threshold = _check_seats(file, config, node.home(config).root)
    evaluation = file.evaluation
    allow_as_said(options, evaluation.architecture)
    architecture = parse_architecture(evaluation.architecture)
    below = adapter_base(config)
    ours, theirs = (
        model_of(*weights_of(path, architecture, below), root=root, field=field, base=below)
        for path, root, field in (
            (base, evaluation.base_root, "base_root"),
            (sold[0], evaluation.sold_root, "sold_root"),
        )
    )
    found = check_measured_again(file, ours, theirs, _appraiser(config, below))
    unchecked = _unchecked(file, threshold)
    if node.json_output:
        told: dict[str, Any] = {
            "holds": True,
            "trade_id": "0x" + file.quote.trade_id.hex(),
            "signers": list(file.signers),
            "threshold": threshold,
            "rows_chosen_by_notice": file.notice is not None,
            "not_checked": unchecked,
            "said": {"gain": evaluation.gain, "bound": evaluation.bound},
            "found": {"gain": found.gain, "bound": found.bound},
        }
        click.echo(json.dumps(told, indent=2))
        return
    seated = "" if threshold is None else f", all seated now; {threshold} must sign"
    click.echo(
        f"trade 0x{file.quote.trade_id.hex()} holds: a gain of {found.gain / 1e6:.6f} "
        f"(said {evaluation.gain / 1e6:.6f}), signed by {len(file.signers)}{seated}"
    )
    for each in unchecked:
        click.echo(f"not checked: {each}")


def _unchecked(file: ReceiptFile, threshold: int | None) -> list[str]:
    """Return what a receipt was not held to; the first of it never can be, by replaying alone."""
    unchecked = [FITTED]
    if file.notice is None:
        unchecked.append("who chose the rows, and how many: the broker's notice is not in the file")
    if threshold is None:
        unchecked.append(
            "whether those who signed are brokers, and enough: name --chain and --escrow"
        )
    return unchecked


def _check_seats(file: ReceiptFile, config: Config, root: Path) -> int | None:
    """Return how many must sign, once all who did are seen to sit; None if no chain is named.

    Raises `RemoteProtocolError` naming the field, and `MarketError` if the chain cannot say.
    """
    import secrets

    from broker_node.quorum.replay import differs
    from node.chain.client import ChainClient
    from node.chain.deployment import deployed_escrows
    from node.chain.port import Seat
    from node.chain.web3_escrow import open_escrow
    from node.protocol.types import NO_ADDRESS

    domain = file.domain
    ours: tuple[Address, ...] = (config.escrow,)
    if config.chain and config.escrow == NO_ADDRESS:
        client = ChainClient(config.chain)
        try:
            # a market of ours may have had others after it: the receipt's own is the one to ask
            ours = deployed_escrows(root, client.chain_id()) or (NO_ADDRESS,)
        finally:
            client.close()
    if ours == (NO_ADDRESS,):
        return None
    if domain.escrow not in ours:
        differs("escrow", domain.escrow, ours[-1])
    if not config.chain:
        return None
    # a key of nobody's: it only reads
    opened = open_escrow(config.chain, secrets.token_bytes(32), domain, quorum=None)
    try:
        if len(file.signers) < opened.threshold:
            differs("signers", len(file.signers), f"fewer than the {opened.threshold} that must")
        for signer in file.signers:
            if opened.seat(signer) is not Seat.TAKEN:
                differs("signers", signer, "without a seat in the escrow now")
    finally:
        opened.close()
    return opened.threshold


@click.command("receipt")
@click.argument("trade_id", metavar="ID")
@on_node
def trade_receipt(node: Invocation, trade_id: str) -> None:
    """Print what was measured for a trade, with all that vouches for it, for `pm-node verify`."""
    from node.cli.receipt_file import of_trade, write
    from node.journal import Journal

    path = node.existing_home(node.load().config).journal
    digits = trade_id.lower().removeprefix("0x")
    if len(digits) < SHORTEST_PREFIX or not path.exists():
        raise _no_trade(trade_id)
    journal = Journal(path, read_only=True)
    try:
        rows = [row for row in journal.trades() if row.trade_id.hex().startswith(digits)]
        if len({row.trade_id for row in rows}) != 1:
            raise _no_trade(trade_id)
        row = next((row for row in rows if row.role != "seller"), rows[0])
        file = of_trade(journal, row)
        click.echo(write(file))
        if file.notice is None:
            click.echo(
                "pm-node: the broker's notice was not kept with this trade, which is of an older "
                "version: `pm-node verify` takes it with --no-notice alone",
                err=True,
            )
    finally:
        journal.close()


def _no_trade(trade_id: str) -> click.BadParameter:
    return click.BadParameter(
        f"{trade_id!r} begins no trade, or several; `pm-node trade list` prints all",
        param_hint="ID",
    )


def weights_of(
    path: Path, architecture: Architecture, base: Base | None
) -> tuple[Architecture, Mapping[str, torch.Tensor]]:
    """Return the weights at a path, and of what they are: a folder is an adapter of PEFT.

    Raises `click.UsageError` for one whose base the settings do not name.
    """
    from node.params.encoding import load_weights
    from node.params.peft import read_adapter

    if not path.is_dir():
        return architecture, load_weights(path)
    if base is None:
        raise click.UsageError(f"{path} is an adapter: name its base with --adapter-base")
    adapter = read_adapter(path, base)
    return adapter.architecture, adapter.tensors


def _appraiser(config: Config, base: Base | None) -> Appraiser:
    """Return who measures on the rows that the settings name."""
    from broker_node.appraisal import DrillAppraiser, MarketAppraiser
    from broker_node.evaluate.validation import ValidationSet
    from node.data.datasets import load
    from node.data.folder import default_data_folder
    from node.data.split import SplitProtocol, split_test

    if config.dataset == "random":
        return DrillAppraiser()
    protocol: SplitProtocol = "paper" if config.protocol == "paper" else "clean"
    dataset = load(config.dataset, config.data_folder or default_data_folder(), seed=config.seed)
    return MarketAppraiser(
        ValidationSet.of(split_test(dataset, protocol=protocol).validation),
        classes=dataset.outputs,
        base=base,
    )
