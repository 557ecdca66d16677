"""`write` makes the dashboards' JSON anew, `check` fails where it is not what the code says."""

import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from observability.dashboards import grid, mesh

FOLDER = Path(__file__).resolve().parent.parent / "grafana" / "dashboards"


def rendered() -> Iterator[tuple[str, str]]:
    """File name and content of each."""
    for module in (grid, mesh):
        name = module.__name__.rpartition(".")[2]
        dashboard = module.build().build()
        for number, panel in enumerate(dashboard.panels or [], start=1):
            panel.id_val = number
        yield f"{name}.json", JSONEncoder(indent=1, sort_keys=True).encode(dashboard) + "\n"


def write() -> int:
    """0."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, content in rendered():
        (FOLDER / name).write_text(content)
    return 0


def check() -> int:
    """0 where all is as the code says, else 1."""
    wanted = dict(rendered())
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    for name in different:
        print(f"{FOLDER.name}/{name} is not what observability/dashboards says: run `make dashboards`")
    return 1 if different else 0


if __name__ == "__main__":
    commands = {"write": write, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: python -m observability.dashboards {'|'.join(commands)}")
    sys.exit(commands[sys.argv[1]]())
