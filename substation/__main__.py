"""Wires one substation: ledger, station, cars, engine, servers."""

import asyncio
import secrets
import sqlite3
from pathlib import Path
from random import Random, SystemRandom

import grpc
import msgspec
import structlog

from gridmesh.v1 import charging_pb2_grpc, operations_pb2_grpc, reports_pb2_grpc
from mesh.clock import Clock, SystemClock
from mesh.metrics import GrpcServerMetrics, MetricsPage, new_registry
from mesh.process import run
from mesh.server import start_server
from mesh.settings import StartupError
from mesh.units import watts
from substation import slots
from substation.cars import SimulatedCars
from substation.engine import Engine, find_cars
from substation.ledger import Ledger, LedgerError
from substation.metrics import SubstationMetrics
from substation.plant import SimulatedPlant
from substation.servicers import SERVICES, Charging, Operations, Reports
from substation.settings import SHARING, SubstationSettings
from substation.station import Station, StationConfig

log = structlog.get_logger()


def open_engine(
    settings: SubstationSettings, folder: Path, clock: Clock, rng: Random, metrics: SubstationMetrics
) -> Engine:
    """An engine with all that the ledger in `folder` remembers, not started yet."""
    ledger = Ledger(folder / "ledger.db")
    try:
        return _recall(settings, ledger, clock, rng, metrics)
    except (LedgerError, sqlite3.Error, msgspec.MsgspecError) as error:
        raise StartupError(f"cannot use the ledger {ledger.path}: {error}") from None


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
    structlog.contextvars.bind_contextvars(substation=substation_id)
    return Engine(station, plant, ledger, clock, metrics, epoch)


async def serve(settings: SubstationSettings, stopping: asyncio.Event) -> None:
    """Runs until `stopping`."""
    rng = SystemRandom()
    registry = new_registry()
    slot = slots.claim(Path(settings.data), settings.id)
    metrics = SubstationMetrics(registry)
    clock = SystemClock()
    engine = open_engine(settings, slot.folder, clock, rng, metrics)
    metrics.show(engine.report, lambda: engine.shown.delivered_mj // 1000)

    def register(server: grpc.aio.Server) -> None:
        charging_pb2_grpc.add_ChargingServiceServicer_to_server(Charging(engine, clock, rng, metrics), server)
        reports_pb2_grpc.add_LoadReportServiceServicer_to_server(Reports(engine), server)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(Operations(engine, clock), server)

    page = MetricsPage(settings.host, settings.metrics_port, registry)
    engine.start()
    server = await start_server(settings.host, settings.port, GrpcServerMetrics(registry), SERVICES, register)
    log.info(
        "substation serves", port=server.port, metrics_port=page.port, sessions=engine.report().load.active_sessions
    )
    engine.broken.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    log.info("substation stops")
    engine.shut()
    await server.stop(settings.grace_s)
    await engine.stop()
    page.close()
    if engine.broken.done():
        engine.broken.result()
    slot.release()


run(SubstationSettings, "SUBSTATION", serve)
