"""The Mesh dashboard: the services, as those see it who keep them running."""

from grafana_foundation_sdk.builders import dashboard

from observability.dashboards.panels import GREEN, RED, YELLOW, Query, lines, new_dashboard, states, zero, zero_of

_REPORT_STATES = {0: ("fresh", GREEN), 1: ("stale", YELLOW), 2: ("gone", RED), 3: ("never reported", "purple")}
_HALF_AND_MOST = ((0.5, "median"), (0.99, "99 %"))


def build() -> dashboard.Dashboard:
    """All of it."""
    mesh = new_dashboard(
        "gridmesh-mesh", "Mesh", "Gateways, balancers and substations as services: rate, errors, duration, and why."
    )
    for row in (_requests, _balancers, _ledgers, _processes):
        row(mesh)
    return mesh


def _rate(metric: str, by: str, scale: str = "") -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval])){scale}"


def _quantile(quantile: float, metric: str, by: str) -> str:
    """Of what happened lately; nothing where nothing did."""
    return f"histogram_quantile({quantile}, {_rate(f'{metric}', f'{by}le')}) >= 0"


def _requests(mesh: dashboard.Dashboard) -> None:
    mesh.with_row(dashboard.Row("Requests"))
    mesh.with_panel(
        lines(
            "Requests by service",
            "reqps",
            "Requests and calls that ended: HTTP at the gateways, gRPC at balancers and substations, streams and health included.",
            Query(
                zero_of("job", f"{_rate('http_requests_total', 'job')} or {_rate('grpc_server_handled_total', 'job')}"),
                "{{job}}",
            ),
        )
    )
    mesh.with_panel(
        lines(
            "Errors by service",
            "percentunit",
            "Part of the requests of the last 5 minutes that failed. Refusals for want of power or plugs, and the client's own "
            "mistakes, are none. The line is the aim.",
            Query(zero_of("job", "job:errors:ratio_rate5m"), "{{job}}"),
            limit=0.001,
        )
    )
    mesh.with_panel(
        lines(
            "Duration of a charge by service",
            "s",
            "From the request until its answer; each includes those behind it. The line is the aim for 99 %.",
            *(
                Query(
                    zero_of(
                        "job",
                        f"{_quantile(quantile, 'http_request_duration_seconds_bucket' + _CHARGES, 'job, ')} or "
                        f"{_quantile(quantile, 'grpc_server_handling_seconds_bucket' + _CHARGE, 'job, ')}",
                    ),
                    f"{{{{job}}}} {name}",
                )
                for quantile, name in _HALF_AND_MOST
            ),
            limit=0.25,
        )
    )
    mesh.with_panel(
        lines(
            "HTTP by route and status",
            "reqps",
            "What the gateways answered, with the reason where it was a problem.",
            Query(
                zero_of("route", f"{_rate('http_requests_total', 'method, route, status, reason')} > 0"),
                "{{method}} {{route}} {{status}} {{reason}}",
            ),
        )
    )
    mesh.with_panel(
        lines(
            "RPCs by method and code",
            "reqps",
            "What balancers and substations answered, with the reason where it was an error of ours. A stream counts when it ends.",
            Query(
                zero_of("job", f"{_rate('grpc_server_handled_total', 'job, grpc_method, grpc_code, reason')} > 0"),
                "{{job}} {{grpc_method}} {{grpc_code}} {{reason}}",
            ),
        )
    )
    mesh.with_panel(
        lines(
            "Slowest routes and RPCs",
            "s",
            "The duration that 99 % stay under, of the eight slowest. Event streams until they begin.",
            Query(
                zero_of(
                    "job", f"topk(4, {_quantile(0.99, 'http_request_duration_seconds_bucket', 'job, method, route, ')})"
                ),
                "{{job}} {{method}} {{route}}",
            ),
            Query(
                zero_of(
                    "job", f"topk(4, {_quantile(0.99, 'grpc_server_handling_seconds_bucket', 'job, grpc_method, ')})"
                ),
                "{{job}} {{grpc_method}}",
            ),
        )
    )


def _overloaded(metric: str) -> str:
    """0 for what was never turned away, as long as it counts at all."""
    return f'rate({metric}{{reason="OVERLOADED"}}[$__rate_interval]) or 0 * rate({metric}[$__rate_interval])'


_CHARGES = '{route="/v1/charges", method="POST"}'
_CHARGE = '{grpc_method="Charge"}'


def _balancers(mesh: dashboard.Dashboard) -> None:
    mesh.with_row(dashboard.Row("Balancers"))
    mesh.with_panel(
        lines(
            "Picks",
            "reqps",
            "Sessions placed, by substation.",
            Query(zero_of("substation", _rate("balancer_picks_total", "substation")), "{{substation}}"),
            stacked=True,
        )
    )
    mesh.with_panel(
        lines(
            "Duration of a pick",
            "s",
            "Time to decide on one step of a call, without the call.",
            *(
                Query(zero(_quantile(quantile, "balancer_pick_seconds_bucket", "")), name)
                for quantile, name in _HALF_AND_MOST
            ),
        )
    )
    mesh.with_panel(
        lines(
            "Tries",
            "cps",
            "Calls to substations and doubts, by what became of them. Each that was not replied to costs a retry, a refusal or a doubt.",
            Query(zero_of("result", _rate("balancer_tries_total", "result")), "{{result}}"),
        )
    )
    mesh.with_panel(
        lines(
            "Age of reports",
            "s",
            "Time since the last report of each substation, at the balancer that waits longest. Fresh: up to 3 s.",
            Query(zero_of("substation", "max by (substation) (balancer_report_age_seconds)"), "{{substation}}"),
            limit=3,
        )
    )
    mesh.with_panel(
        states(
            "State of reports",
            "The worst that any balancer knows of each substation.",
            Query(
                zero_of(
                    "substation",
                    'max by (substation) (0 * balancer_substation_state{state="fresh"} or balancer_substation_state{state="stale"}'
                    ' or 2 * balancer_substation_state{state="gone"} or 3 * balancer_substation_state{state="never_reported"})',
                ),
                "{{substation}}",
            ),
            _REPORT_STATES,
        )
    )
    mesh.with_panel(
        lines(
            "Reports",
            "cps",
            "Load reports by what became of them: accepted, a duplicate, stale (of an older life), malformed.",
            Query(zero_of("result", _rate("balancer_reports_total", "result")), "{{result}}"),
        )
    )
    mesh.with_panel(
        lines(
            "Ejections",
            "short",
            "Substations left out because calls to them fail: now, and (dashed) how often within 5 minutes.",
            Query(zero_of("substation", "max by (substation) (balancer_ejected)"), "{{substation}}"),
            Query(
                zero_of("substation", "sum by (substation) (increase(balancer_ejections_total[5m]))"),
                "{{substation}} in 5 min",
            ),
            dashed="/in 5 min/",
            width=6,
        )
    )
    mesh.with_panel(
        lines(
            "Reservations",
            "watt",
            "Power placed by balancers that no report contains yet. It is gone again within a second.",
            Query(zero_of("substation", "sum by (substation) (balancer_reserved_watts)"), "{{substation}}"),
            width=6,
        )
    )
    mesh.with_panel(
        lines(
            "Doubts and duplicates",
            "short",
            "Charges of which it is not known whether they were admitted, and (dashed) sessions ended within 5 minutes because "
            "their key had another one.",
            Query(zero("sum(balancer_open_doubts)"), "open doubts"),
            Query(zero("sum(increase(balancer_duplicates_total[5m]))"), "duplicates in 5 min"),
            dashed="/in 5 min/",
            width=6,
        )
    )
    mesh.with_panel(
        lines(
            "Lookups of names",
            "cps",
            "How often balancers looked for substations by name, by how it ended. None where they are given addresses.",
            Query(zero_of("result", _rate("balancer_lookups_total", "result")), "{{result}}"),
            width=6,
        )
    )


def _ledgers(mesh: dashboard.Dashboard) -> None:
    mesh.with_row(dashboard.Row("Ledgers"))
    mesh.with_panel(
        lines(
            "Duration of a commit",
            "s",
            "A charge is answered after the commit that holds it. 99 % by substation over 5 minutes, and the median of all.",
            Query(zero_of("substation", "substation:ledger_commit_seconds:p99_5m >= 0"), "{{substation}} 99 %"),
            Query(zero(_quantile(0.5, "substation_ledger_commit_seconds_bucket", "")), "median"),
            limit=0.25,
            width=6,
        )
    )
    mesh.with_panel(
        lines(
            "Commits",
            "cps",
            "Group commits per second of all substations, and charges admitted: how many share one.",
            Query(zero("sum(rate(substation_ledger_commit_seconds_count[$__rate_interval]))"), "commits"),
            Query(zero('sum(rate(substation_sessions_total{outcome="admitted"}[$__rate_interval]))'), "admitted"),
            width=6,
        )
    )
    mesh.with_panel(
        lines(
            "Ledgers and disk",
            "bytes",
            "Size of the ledgers, and (dashed) the least that is free on a disk under one.",
            Query(zero("sum(substation_ledger_bytes)"), "ledgers"),
            Query(zero("min(substation_disk_free_bytes)"), "free"),
            dashed="free",
            width=6,
        )
    )
    mesh.with_panel(
        lines(
            "Sessions that nobody serves",
            "short",
            "Live sessions in a slot of the data folder that no substation owns.",
            Query(zero_of("slot", "max by (slot) (substation_orphaned_sessions)"), "{{slot}}"),
            width=6,
        )
    )


def _processes(mesh: dashboard.Dashboard) -> None:
    mesh.with_row(dashboard.Row("Processes"))
    each = "{{job}} {{instance}}"
    mesh.with_panel(
        lines(
            "CPU",
            "percentunit",
            "Time on a core. Each process decides on one thread: near 100 % its callers wait.",
            Query(zero_of("job", "rate(process_cpu_seconds_total[$__rate_interval])"), each),
            limit=1,
        )
    )
    mesh.with_panel(
        lines("Memory", "bytes", "Resident memory.", Query(zero_of("job", "process_resident_memory_bytes"), each))
    )
    mesh.with_panel(
        lines(
            "Open files",
            "percentunit",
            "Open files and sockets as part of what the process may open.",
            Query(zero_of("job", "process_open_fds / process_max_fds"), each),
            limit=0.8,
        )
    )
    mesh.with_panel(
        lines(
            "Overload",
            "cps",
            "Requests and calls turned away at once because more come than can be served, and (dashed) streams ended within 5 "
            "minutes because nobody read them.",
            Query(
                zero_of(
                    "job",
                    f"sum by (job) ({_overloaded('http_requests_total')} or {_overloaded('grpc_server_handled_total')})",
                ),
                "{{job}}",
            ),
            Query(
                zero_of(
                    "job",
                    "sum by (job) (increase(http_event_streams_dropped_total[5m]) or "
                    'increase(grpc_server_handled_total{reason="READER_TOO_SLOW"}[5m]))',
                ),
                "{{job}} streams in 5 min",
            ),
            dashed="/in 5 min/",
        )
    )
    mesh.with_panel(
        lines(
            "Garbage collections",
            "cps",
            "Per second, by generation. Those of generation 2 hold up everything for longer.",
            Query(zero_of("job", _rate("python_gc_collections_total", "job, generation")), "{{job}} {{generation}}"),
        )
    )
    mesh.with_panel(
        lines(
            "Up for",
            "s",
            "Time since each process started, 0 while its page cannot be read: a step down is a restart.",
            Query(zero_of("job", "up * on (job, instance) (time() - process_start_time_seconds) or 0 * up"), each),
        )
    )
