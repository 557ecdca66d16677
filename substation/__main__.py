"""Wires one substation: ledger, station, cars, engine, servers."""

import asyncio
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import grpc
import structlog

from gridmesh.v1 import charging_pb2_grpc, operations_pb2_grpc, reports_pb2_grpc
from mesh import logs, tracing
from mesh.admission import Admission
from mesh.clock import Clock, SystemClock
from mesh.metrics import GrpcServerMetrics, MetricsPage, new_registry
from mesh.process import run
from mesh.server import Server, start_server
from mesh.settings import StartupError
from mesh.units import watts
from substation import damage, slots
from substation.cars import SimulatedCars
from substation.charges import Charges
from substation.damage import DamagedError
from substation.engine import Engine, find_cars
from substation.ledger import LEDGER, Ledger, LedgerError
from substation.metrics import SubstationMetrics
from substation.plant import SimulatedPlant
from substation.servicers import SERVICES, Charging, Operations, Reports
from substation.settings import SHARING, SubstationSettings
from substation.station import Station, StationConfig

log = structlog.get_logger()

LEDGER_HEALTH = "ledger"


def open_engine(
    settings: SubstationSettings, folder: Path, clock: Clock, rng: Random, metrics: SubstationMetrics
) -> Engine:
    """An engine with all that the ledger in `folder` remembers, not started yet."""
    path, now = folder / LEDGER, clock.now_ms()
    damage.check_told(path, settings.start_without, StationConfig.lease_ms, now)
    try:
        with _closed_on_error(Ledger(path)) as ledger:
            engine = _recall(settings, ledger, clock, rng, metrics)
    except DamagedError as error:
        aside = damage.set_aside(path, now)
        log.error("ledger damaged: set aside", ledger=str(path), aside=str(aside), error=str(error))  # noqa: TRY400
        raise StartupError(damage.advice(path, aside)) from None
    except (LedgerError, sqlite3.Error) as error:
        raise StartupError(f"cannot use the ledger {path}: {error}") from None
    metrics.damaged.set(len(damage.files(path)))
    return engine


@contextmanager
def _closed_on_error(ledger: Ledger) -> Iterator[Ledger]:
    """A file that is to be set aside must not be open."""
    try:
        yield ledger
    except BaseException:
        ledger.close()
        raise


def _recall(
    settings: SubstationSettings, ledger: Ledger, clock: Clock, rng: Random, metrics: SubstationMetrics
) -> Engine:
    folder = ledger.path.parent
    substation_id = ledger.substation_id(settings.id or f"{folder.name}-{secrets.token_hex(2)}")
    if settings.id and substation_id != settings.id:
        raise StartupError(f"the ledger in {folder} is of substation {substation_id!r}, not {settings.id!r}")
    now = clock.now_ms()
    epoch = ledger.next_epoch(now)
    memory = ledger.recall(now)
    plant = SimulatedPlant(SimulatedCars(settings.time_scale), clock)
    find_cars(plant, memory.sessions, now)
    config = StationConfig(substation_id, watts(settings.rated_kw), settings.charge_points, settings.time_scale)
    station = Station(config, rng, now, memory, SHARING[settings.sharing]())
    logs.bind(substation=substation_id)
    return Engine(station, plant, ledger, clock, metrics, epoch)


async def _show_ledger(engine: Engine, server: Server) -> None:
    """Health of the service name `ledger`: whether it can be written. The others stay SERVING."""
    news, said = engine.shown.listen(), None
    while True:
        news.clear()
        if said is not engine.ledger_works:
            said = engine.ledger_works
            await server.show(LEDGER_HEALTH, said)
        await news.wait()


async def serve(settings: SubstationSettings, stopping: asyncio.Event) -> None:
    """Runs until `stopping`."""
    # Ids must differ between processes, not be secrets; the system's own generator costs a call of the kernel for each.
    rng = Random(secrets.randbits(256))  # noqa: S311
    registry = new_registry()
    data = Path(settings.data)
    slot = slots.claim(data, settings.id)
    metrics = SubstationMetrics(registry)
    metrics.show_orphans(lambda: slots.orphans(data, slot.folder))
    clock, admission = SystemClock(), Admission(settings.max_calls, rng)
    engine = open_engine(settings, slot.folder, clock, rng, metrics)
    tracing.start("substation", engine.report().substation_id)
    metrics.show(lambda: engine.load, settings.time_scale, lambda: engine.shown.delivered_mj // 1000)
    metrics.show_place(engine.report().substation_id, slot.folder / LEDGER)

    charges = Charges(engine, clock, rng, metrics)

    def register(server: grpc.aio.Server) -> None:
        charging_pb2_grpc.add_ChargingServiceServicer_to_server(Charging(charges, admission), server)
        reports_pb2_grpc.add_LoadReportServiceServicer_to_server(Reports(engine, charges.load), server)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(Operations(engine, clock), server)

    page = MetricsPage(settings.host, settings.metrics_port, registry)
    engine.start()
    server = await start_server(
        settings.host, settings.port, GrpcServerMetrics(registry), SERVICES, register, admission
    )
    log.info(
        "substation serves", port=server.port, metrics_port=page.port, sessions=engine.report().load.active_sessions
    )
    showing = asyncio.create_task(_show_ledger(engine, server))
    engine.broken.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    log.info("substation stops")
    showing.cancel()
    await server.leave()
    engine.shut()
    await server.stop(settings.grace_s)
    await engine.stop()
    page.close()
    if engine.broken.done():
        engine.broken.result()
    slot.release()


run(SubstationSettings, "SUBSTATION", serve)
