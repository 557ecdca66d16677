"""The Grid dashboard: the substations, as those see it who answer for power and cars."""

from grafana_foundation_sdk.builders import dashboard

from observability.dashboards.panels import OF_SUBSTATION, Query, bars, lines, new_dashboard, number, zero, zero_of


def build() -> dashboard.Dashboard:
    """All of it."""
    grid = new_dashboard(
        "gridmesh-grid", "Grid", "Substations: who charges where, with how much power, and who does not."
    )
    for row in (_now, _substations, _energy, _reasons):
        row(grid)
    return grid


def _by_substation(expr: str) -> Query:
    return Query(zero_of("substation", expr), "{{substation}}")


def _now(grid: dashboard.Dashboard) -> None:
    grid.with_row(dashboard.Row("Now"))
    grid.with_panel(
        number(
            "Sessions",
            "short",
            "Sessions that want energy, on all substations.",
            zero("sum(substation_active_sessions)"),
        )
    )
    grid.with_panel(
        number("Power drawn", "watt", "What all cars draw, as measured.", zero("sum(substation_measured_watts)"))
    )
    grid.with_panel(
        number(
            "Committed of all limits",
            "percentunit",
            "Committed power as part of all limits in force. Full is no fault: it is what sharing is for.",
            zero("sum(substation_committed_watts) / (sum(substation_limit_watts) > 0)"),
        )
    )
    grid.with_panel(
        number(
            "Spread",
            "percentunit",
            "Utilisation of the fullest substation less that of the emptiest. 0 is perfectly even.",
            zero("max(substation:utilisation:ratio) - min(substation:utilisation:ratio)"),
            warn=0.2,
        )
    )
    grid.with_panel(
        number(
            "Time over the limit",
            "s",
            "Committed or measured power over a limit within the time shown, outside the time to obey a cut. Must be 0.",
            zero("sum(increase(substation_over_limit_seconds_total[$__range]))"),
            bad=0.001,
        )
    )
    grid.with_panel(
        number(
            "Alerts",
            "short",
            "Alerts that fire, for the grid and the mesh. Prometheus' page /alerts lists them; RUNBOOK.md says what to do.",
            zero('count(ALERTS{alertstate="firing"})'),
            bad=1,
        )
    )


def _substations(grid: dashboard.Dashboard) -> None:
    grid.with_row(dashboard.Row("Substations"))
    grid.with_panel(
        lines(
            "Sessions",
            "short",
            "Sessions that want energy.",
            _by_substation("substation:active_sessions"),
        )
    )
    grid.with_panel(
        lines(
            "Utilisation",
            "percentunit",
            "What the cars could take, as part of the limit. Above 100 % the power is shared, never exceeded.",
            _by_substation("substation:utilisation:ratio"),
            limit=1,
        )
    )
    grid.with_panel(
        lines(
            "Evenness of the spread",
            "percentunit",
            "The fullest and the emptiest substation, and the distance between them.",
            Query(zero("max(substation:utilisation:ratio)"), "fullest"),
            Query(zero("min(substation:utilisation:ratio)"), "emptiest"),
            Query(zero("max(substation:utilisation:ratio) - min(substation:utilisation:ratio)"), "spread"),
            dashed="spread",
        )
    )
    grid.with_panel(
        lines(
            "Committed power and limit",
            "watt",
            "Committed: the most that the cars may draw by what they were ever told. The dashed lines are the limits in force, "
            "with whose they are.",
            _by_substation("substation:committed_watts"),
            Query(
                zero_of("substation", f"sum by (substation, source) (substation_limit_watts * {OF_SUBSTATION})"),
                "limit of {{substation}} {{source}}",
            ),
            dashed="/limit of.*/",
        )
    )
    grid.with_panel(
        lines(
            "Headroom",
            "watt",
            "Limit less committed power: what can be added now.",
            _by_substation("substation:headroom_watts"),
        )
    )
    grid.with_panel(
        lines(
            "What the cars need",
            "percentunit",
            "Power that brings every car its energy by its departure, as part of the limit; dashed, where that will be in 15 "
            "minutes if it goes on like the last 5. Above 100 % not all can get what they asked for.",
            _by_substation("substation:required:ratio"),
            Query(
                zero_of(
                    "substation",
                    "clamp_min(predict_linear(substation:required_watts[5m], 900), 0) / (substation:limit_watts > 0)",
                ),
                "{{substation}} in 15 min",
            ),
            limit=1,
            dashed="/in 15 min/",
        )
    )


def _energy(grid: dashboard.Dashboard) -> None:
    totals = ("rated", "limit", "demand", "required", "committed", "granted", "measured")
    grid.with_row(dashboard.Row("Power and energy"))
    grid.with_panel(
        lines(
            "Power of all substations",
            "watt",
            "From what is built to what flows: rated, limits in force, what the cars can take (demand) and need (required), "
            "what is committed to them, granted, and drawn (measured).",
            *(Query(zero(f"sum(substation_{name}_watts)"), name) for name in totals),
            dashed="/rated|limit/",
        )
    )
    grid.with_panel(
        lines(
            "Energy rate",
            "watt",
            "Energy delivered per second of charging: the registers' growth divided by the time scale.",
            _by_substation("substation:delivered_watts:rate1m"),
            stacked=True,
        )
    )
    grid.with_panel(
        bars(
            "Energy delivered",
            "kwatth",
            "Energy that the cars got within the time shown.",
            _by_substation(
                f"sum by (substation) (increase(substation_energy_delivered_joules_total[$__range]) * {OF_SUBSTATION}) / 3.6e6"
            ),
        )
    )


def _reasons(grid: dashboard.Dashboard) -> None:
    grid.with_row(dashboard.Row("Who does not get what they want, and why"))
    grid.with_panel(
        lines(
            "Refusals by reason",
            "cpm",
            "Charges answered with an error, per minute, wherever they were asked for, each once.",
            Query(
                zero_of("reason", "sum by (reason) (rate(balancer_refusals_total[$__rate_interval])) * 60 > 0"),
                "{{reason}}",
            ),
            stacked=True,
        )
    )
    grid.with_panel(
        lines(
            "Curtailed sessions by reason",
            "short",
            "Sessions granted less than they can take: power is SHARED, they are WAITING_TURN, an operator cut the limit "
            "(LIMIT_CUT), power rises slowly (RAMP), or the car leaves it UNDRAWN.",
            Query(zero_of("reason", "sum by (reason) (substation_curtailed_sessions) > 0"), "{{reason}}"),
            stacked=True,
        )
    )
    grid.with_panel(
        lines(
            "Sessions admitted and ended",
            "cpm",
            "Per minute, ends by why. What a substation refuses here may have been admitted by the next one.",
            Query(
                zero_of(
                    "outcome", "sum by (outcome, reason) (rate(substation_sessions_total[$__rate_interval])) * 60 > 0"
                ),
                "{{outcome}} {{reason}}",
            ),
        )
    )
    grid.with_panel(
        lines(
            "Substations that admit nobody",
            "short",
            "By why: DRAINING is an operator's will, LEDGER a disk that cannot be written, SHUTTING_DOWN a process that stops.",
            Query(zero_of("reason", "sum by (reason) (substation_not_accepting) > 0"), "{{reason}}"),
            width=12,
            stacked=True,
        )
    )
    grid.with_panel(
        lines(
            "Time to obey a cut",
            "s",
            "From a cut of the limit until committed power was back under it: half of the cuts within the time shown, and 95 %.",
            *(
                Query(
                    zero(
                        f"histogram_quantile({quantile}, sum by (le) "
                        "(increase(substation_limit_compliance_seconds_bucket[$__range]))) >= 0"
                    ),
                    name,
                )
                for quantile, name in ((0.5, "median"), (0.95, "95 %"))
            ),
            width=12,
            limit=15,
        )
    )
