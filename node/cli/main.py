"""``pm-node``: one command for operators, newcomers and scripts.

Nothing heavy is imported until a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from node.cli.bonds import collect, leave, report, standing, take_bond
from node.cli.contracts import contracts
from node.cli.devnet import devnet
from node.cli.doctor import doctor
from node.cli.exits import BAD_INPUT, DONE, FAILED, INTERRUPTED, code_of, fault_in, line_of
from node.cli.invocation import Invocation, on_node, settings_flags
from node.cli.keys import keys
from node.cli.mechanism import mechanism
from node.cli.starting import interruptible_start
from node.cli.status import status
from node.cli.survey import survey
from node.cli.trades import trade
from node.cli.try_ import try_
from node.cli.verify import trade_receipt, verify
from node.config.loading import template
from node.config.table import SETTINGS
from node.protocol.errors import MarketError


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@settings_flags()
@click.version_option(package_name="pm-node")
@click.pass_context
def cli(
    context: click.Context, /, config_file: Path | None, json_output: bool, **flags: object
) -> None:
    """A market in which models' weights are traded.

    `pm-node --role agent` trains, offers and buys; `pm-node --role broker` serves a market;
    `pm-node devnet` plays one on this machine.
    """
    node = Invocation(config=config_file, flags=flags, json_output=json_output)
    context.obj = node
    if context.invoked_subcommand is not None:
        return
    if node.bare:
        click.echo(context.get_help())
        return
    with interruptible_start() as start:
        loaded = node.load()
        from node.cli.preflight import check_data

        check_data(loaded)
        from node.cli.roles import run_role

        run_role(loaded.config, os.environ, start, json_output=json_output)


@cli.command()
@on_node
def init(node: Invocation) -> None:
    """Make a data directory with a commented config.toml; nothing there is overwritten."""
    home = node.home(node.load().config).prepare()
    chosen = {
        name: value
        for name, value in node.flags.items()
        if value not in (None, ()) and name not in ("data_dir", "password_file")
    }
    made = False
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(home.config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(template(chosen))
        made = True
    if node.json_output:
        click.echo(json.dumps({"data_dir": str(home.root), "config_written": made}))
        return
    kept = "" if made else f"; its {home.config.name} is kept as it was"
    click.echo(f"{home.root} is ready{kept}; keys are made by its first start or `keys new`")


@cli.group("config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command("show")
@click.option("--origin", is_flag=True, help="say where each value comes from")
@on_node
def config_show(node: Invocation, origin: bool) -> None:
    """Print every setting as it would be used."""
    loaded = node.load()
    rows = {
        name: {"value": str(getattr(loaded.config, name)), "origin": str(loaded.origins[name])}
        for name in SETTINGS
    }
    if node.json_output:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, row in rows.items():
        click.echo(f"{name} = {row['value']}" + (f"    # {row['origin']}" if origin else ""))


@cli.command()
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="its state")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8545, show_default=True, type=click.IntRange(0, 65_535))
@click.option("--json", "as_json", is_flag=True, help="say where it is as a JSON object")
@click.pass_obj
def chain(node: Invocation, directory: Path, host: str, port: int, as_json: bool) -> None:
    """Serve a development chain of play money over JSON-RPC, with a faucet."""
    from node.cli.chain import run_chain

    as_json = as_json or node.json_output
    run_chain(directory, host, port, os.environ, json_output=as_json)


trade.add_command(trade_receipt)
for command in (standing, leave, take_bond, report, collect):
    contracts.add_command(command)
for command in (keys, status, doctor, trade, devnet, contracts, verify, mechanism, try_, survey):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is one line, never a traceback."""
    try:
        code = cli.main(args=arguments, prog_name="pm-node", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BAD_INPUT
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        text = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"pm-node: {text}; see `{path or 'pm-node'} --help`", err=True)
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except MarketError as error:
        return _told(error)
    except BaseExceptionGroup as group:
        fault = fault_in(group)
        if fault is None:
            raise
        return _told(fault)
    return code if isinstance(code, int) else DONE


def _told(error: MarketError) -> int:
    click.echo(f"pm-node: {line_of(error)}", err=True)
    return code_of(error)


def main() -> NoReturn:
    """Run the command that was typed, and exit with its code.

    By then all is closed that a command had open. The interpreter is not taken apart: with torch
    that is as much work as half a second of a start, and no handler of ours hears a signal in it.
    """
    try:
        code = run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else FAILED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more
            code = code or FAILED
    os._exit(code)


if __name__ == "__main__":
    main()
