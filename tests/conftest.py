"""Fixtures that start real meshes, and what a failed test shows of them."""

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from tests.mesh_processes import Mesh

StartMesh = Callable[..., Mesh]

# An example takes as long as the machine lets it: time tells nothing of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    # A timeout that ends pytest with SIGTERM must not leave meshes behind: fixtures end as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In the background of a shell Ctrl-C is ignored, and so it would be in what is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Three substations of 100 kW, a balancer and a gateway at 60x, shared by the tests of a module."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running.start()


@pytest.fixture
def start_mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartMesh]:
    """Starts a mesh of this test's own: `start_mesh(rated_kw=(50, 100, 200))`, `start_mesh("a", time_scale=1)`."""
    started: list[Mesh] = []
    request.node.stash[_MESHES] = started

    def start(*names: str, **options: object) -> Mesh:
        own = Mesh(tmp_path_factory.mktemp("mesh"), **options)  # type: ignore[arg-type]
        started.append(own)
        return own.start(*names)

    with ExitStack() as closing:
        yield start
        for own in started:
            closing.callback(own.close)


_MESHES = pytest.StashKey[list[Mesh]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of each part's log."""
    report = yield
    if report.failed:
        for mesh in _meshes_of(item):
            report.sections += [(f"log of {name}", tail) for name, tail in mesh.logs().items()]
    return report


def _meshes_of(item: pytest.Item) -> Iterator[Mesh]:
    yield from item.stash.get(_MESHES, [])
    shared = getattr(item, "funcargs", {}).get("mesh")
    if isinstance(shared, Mesh):
        yield shared
