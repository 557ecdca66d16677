"""`gridmesh`, the command line with `up`: the only part of it that knows how a mesh is run."""

import dataclasses
import os
import sys
from typing import Any

import click

from deploy import local
from deploy.local import MeshSettings
from fleet import __main__ as fleet
from fleet import cli
from mesh.settings import StartupError, load


def _flags() -> list[click.Parameter]:
    """Those of the settings; what is wrong with a value is theirs to say."""
    json_flag = click.Option(["--json", "as_json"], is_flag=True, help="print JSON, for programs: one object a line")
    return [
        json_flag,
        *(
            click.Option(
                [f"--{field.name.replace('_', '-')}"], help=f"{field.metadata['help']} (MESH_{field.name.upper()})"
            )
            for field in dataclasses.fields(MeshSettings)
            if field.name != "log_format"
        ),
    ]


@click.pass_context
def _up(ctx: click.Context, /, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - as click gives them
    """Start three substations, a balancer and a gateway on this machine, and keep them alive until Ctrl-C."""
    flags = [word for name, text in given.items() if text is not None for word in (f"--{name.replace('_', '-')}", text)]
    ctx.exit(local.main([*(["--log-format", "json"] if as_json else []), *flags]))


up = click.Command(
    "up",
    callback=_up,
    params=_flags(),
    help=_up.__doc__,
    epilog=cli.examples("gridmesh up", "gridmesh up --rated-kw 50,100,200 --time-scale 1", "gridmesh up --json"),
)


def cannot_start() -> str:
    """What would keep `up` from starting; empty when nothing would."""
    try:
        settings = load(MeshSettings, "MESH", [], os.environ)
        local.check_ports(local.plan(settings))
        local.check_folder(settings.folder)
    except StartupError as error:
        return str(error)
    return ""


def main() -> None:
    """What the script `gridmesh` runs."""
    sys.exit(cli.main([up, *fleet.commands(cannot_start)], sys.argv[1:]))


if __name__ == "__main__":
    main()
