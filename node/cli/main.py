"""``pm-node``: one command for operators, newcomers and scripts.

Nothing heavy is imported until a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from node.config.table import SETTINGS, Loaded, load
from node.protocol.errors import MarketError

F = TypeVar("F", bound=Callable[..., Any])


def _settings_flags(command: F) -> F:
    """Add a flag for each row of the table of settings."""
    for row in reversed(tuple(SETTINGS.values())):
        command = click.option(
            row.flag, row.name, multiple=row.multiple, default=None, help=row.help
        )(command)
    return command


def _load(flags: dict[str, object], config: Path | None) -> Loaded:
    named = config or (Path(os.environ["PMNODE_CONFIG"]) if "PMNODE_CONFIG" in os.environ else None)
    loaded = load(file=named, environ=os.environ, flags=flags)
    if named is None:
        from node.home import Home, default_data_dir

        folder = loaded.config.data_dir or default_data_dir(loaded.config.role, os.environ)
        own = Home(folder).config
        if own.exists():
            return load(file=own, environ=os.environ, flags=flags)
    return loaded


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), default=None, help="TOML file")
@click.option("--json", "json_output", is_flag=True, help="no lines for people on the console")
@_settings_flags
@click.version_option(package_name="pm-node")
@click.pass_context
def cli(context: click.Context, /, config: Path | None, json_output: bool, **flags: object) -> None:
    """A market in which models' weights are traded.

    `pm-node --role agent` trains, offers and buys; `pm-node --role broker` serves a market;
    `pm-node devnet` plays one on this machine.
    """
    context.obj = (config, flags)
    if context.invoked_subcommand is not None:
        return
    if flags.get("role") is None and "PMNODE_ROLE" not in os.environ and config is None:
        click.echo(context.get_help())
        return
    from node.cli.roles import run_role

    run_role(_load(flags, config).config, os.environ, json_output=json_output)


@cli.command()
@click.pass_context
def init(context: click.Context) -> None:
    """Make a data directory with a commented config.toml; nothing there is overwritten."""
    from node.config.table import template
    from node.home import Home, default_data_dir

    config, flags = context.obj
    loaded = _load(flags, config)
    home = Home(loaded.config.data_dir or default_data_dir(loaded.config.role, os.environ))
    home.prepare()
    chosen = {
        name: value
        for name, value in flags.items()
        if value not in (None, ()) and name not in ("data_dir", "password_file")
    }
    if not home.config.exists():
        home.config.write_text(template(chosen), encoding="utf-8")
        home.config.chmod(0o600)
    click.echo(f"{home.root} is ready; keys are made by its first start")


@cli.group("config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command("show")
@click.option("--origin", is_flag=True, help="say where each value comes from")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def config_show(context: click.Context, origin: bool, as_json: bool) -> None:
    """Print every setting as it would be used."""
    config, flags = context.find_root().obj
    loaded = _load(flags, config)
    rows = {
        name: {
            "value": str(getattr(loaded.config, name)),
            "origin": str(loaded.origins[name]),
        }
        for name in SETTINGS
    }
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, row in rows.items():
        click.echo(f"{name} = {row['value']}" + (f"    # {row['origin']}" if origin else ""))


@cli.command()
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="its state")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8545, show_default=True)
def chain(directory: Path, host: str, port: int) -> None:
    """Serve a development chain of play money over JSON-RPC, with a faucet."""
    from node.cli.chain import run_chain

    run_chain(directory, host, port, os.environ)


@cli.command()
@click.option("--processes", is_flag=True, help="each node its own process, over loopback TCP")
@click.option("--agents", default=2, show_default=True, type=click.IntRange(2, 16))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--epochs",
    default=5,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="epochs of training in a round",
)
@click.option(
    "--dataset",
    default="mnist",
    show_default=True,
    type=click.Choice(["mnist", "digits", "random"]),
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--name", default=None, help="folder under runs/ (default: by data set and seed)")
@click.option("--json", "as_json", is_flag=True, help="the report alone, on standard output")
def devnet(**options: Any) -> None:
    """Play a market on this machine: chain, broker and agents, to a settled ledger."""
    from node.devnet.processes import run_devnet

    sys.exit(run_devnet(**options))


@cli.group()
def trade() -> None:
    """Look at the trades of a node."""


@trade.command("list")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def trade_list(context: click.Context, as_json: bool) -> None:
    """Print every trade of the journal; works beside a running node."""
    from node.home import Home, default_data_dir
    from node.settlement.history import trade_rows

    config, flags = context.find_root().obj
    loaded = _load(flags, config).config
    home = Home(loaded.data_dir or default_data_dir(loaded.role, os.environ))
    rows = trade_rows(home.journal)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['trade_id'][:18]}  {row['side']:6}  {row['state']:13}  "
            f"{row['price'] or '-':>22} wei  {row['note']}"
        )


def main() -> None:
    """Run the command; a market error is one line and an exit code, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except MarketError as error:
        from node.cli.exits import code_of

        click.echo(f"pm-node: {error}", err=True)
        sys.exit(code_of(error))


if __name__ == "__main__":
    main()
