"""Runs protoc and buf over `protos/`: `write` regenerates `generated/`, `check` fails on drift, `lint` is buf STANDARD.

protoc's output is byte-identical on a rerun, so drift is a plain comparison with a fresh run.
"""

import filecmp
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "generated"


def third_party_protos() -> Path:
    """The folder that holds google/rpc/*.proto, from googleapis-common-protos."""
    folder = Path(next(iter(importlib.import_module("google.rpc").__path__)))
    return folder.parent.parent


def protoc(*options: str) -> None:
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{third_party_protos()}"]
    # protoc finds the plugins of mypy-protobuf beside this Python, not on the caller's PATH.
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")
    ]
    subprocess.run([*command, *plugins, *options, *sources], check=True)


def generate(out: Path) -> None:
    protoc(*(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")))
    for folder in (out / "gridmesh", out / "gridmesh" / "v1"):
        (folder / "__init__.py").touch()


def files(folder: Path) -> Iterator[Path]:
    return (path.relative_to(folder) for path in sorted(folder.rglob("*.py*")) if path.suffix in {".py", ".pyi"})


def write() -> int:
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    generate(GENERATED)
    return 0


def check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = sorted({*files(fresh), *files(GENERATED)})
        _, different, missing = filecmp.cmpfiles(fresh, GENERATED, names, shallow=False)
    for name in [*different, *missing]:
        print(f"generated/{name} is not what protos/ gives: run `make protos`")
    return 1 if different or missing else 0


def lint() -> int:
    # buf reads protoc's image, so that google/rpc comes from the pinned package and not from a network.
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        protoc("--include_imports", "--include_source_info", f"-o{image}")
        buf = Path(sys.executable).parent / "buf"
        done = subprocess.run([buf, "lint", image, "--config", ROOT / "buf.yaml", "--path", "gridmesh"], check=False)
    return done.returncode


if __name__ == "__main__":
    commands = {"write": write, "check": check, "lint": lint}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: protos.py {'|'.join(commands)}")
    sys.exit(commands[sys.argv[1]]())
