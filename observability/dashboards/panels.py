"""Panels as this project draws them: each says its unit and what it means, and shows zeros rather than nothing."""

from typing import NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="gridmesh-prometheus")
TAG = "gridmesh"
# The grid is 24 wide.
NUMBER_WIDTH, NUMBER_HEIGHT, HEIGHT = 4, 4, 8
GREEN, YELLOW, RED = "green", "yellow", "red"
OF_SUBSTATION = "on (job, instance) group_left (substation) substation_info"


class Query(NamedTuple):
    """An expression, and what its lines are called."""

    expr: str
    legend: str


def zero(expr: str) -> str:
    """0 where there is nothing."""
    return f"{expr} or vector(0)"


def zero_of(label: str, expr: str) -> str:
    """0 with `none` for the label where there is nothing."""
    return f'{expr} or on () label_replace(vector(0), "{label}", "none", "", "")'


def _query(query: Query, ref_id: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id).datasource(SOURCE).range()


def _steps(warn: float | None, bad: float | None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(None, GREEN)]
    if warn is not None:
        steps.append(Threshold(warn, YELLOW))
    if bad is not None:
        steps.append(Threshold(bad, RED))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def number(
    title: str, unit: str, description: str, expr: str, *, warn: float | None = None, bad: float | None = None
) -> stat.Panel:
    """One number, its last value, with a line behind it."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(NUMBER_WIDTH)
        .height(NUMBER_HEIGHT)
        .datasource(SOURCE)
        .with_target(_query(Query(expr, title), "A"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(choices.BigValueGraphMode.AREA)
        .color_mode(choices.BigValueColorMode.VALUE)
        .thresholds(_steps(warn, bad))
        .min(0)
    )


def lines(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    width: int = 8,
    limit: float | None = None,
    stacked: bool = False,
    dashed: str = "",
) -> timeseries.Panel:
    """Lines over time. `limit` draws a red line there; `dashed` is a pattern of the names of lines that are dashed."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(width)
        .height(HEIGHT)
        .datasource(SOURCE)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(choices.VisibilityMode.NEVER)
        .thresholds(_steps(None, limit))
        .tooltip(common.VizTooltipOptions().mode(choices.TooltipDisplayMode.MULTI).sort(choices.SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(choices.LegendDisplayMode.LIST)
            .placement(choices.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
    )
    for ref_id, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_query(query, ref_id))
    if stacked:
        panel.stacking(common.StackingConfig().mode(choices.StackingMode.NORMAL).group("A"))
    if limit is not None:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(choices.GraphThresholdsStyleMode.DASHED))
    if dashed:
        panel.override_by_regexp(
            dashed,
            [
                DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [6, 4]}),
                DynamicConfigValue("custom.fillOpacity", 0),
            ],
        )
    return panel


def bars(title: str, unit: str, description: str, query: Query) -> bargauge.Panel:
    """One bar for each line's last value."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(8)
        .height(HEIGHT)
        .datasource(SOURCE)
        .with_target(_query(query, "A"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(choices.VizOrientation.HORIZONTAL)
        .thresholds(_steps(None, None))
        .min(0)
    )


def states(title: str, description: str, query: Query, named: dict[int, tuple[str, str]]) -> statetimeline.Panel:
    """A band for each line; `named` gives a value its word and colour."""
    words = {str(value): ValueMappingResult(text=text, color=color) for value, (text, color) in named.items()}
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .unit("none")
        .span(8)
        .height(HEIGHT)
        .datasource(SOURCE)
        .with_target(_query(query, "A"))
        .mappings([ValueMap(words)])
        .show_value(choices.VisibilityMode.NEVER)
        .merge_values(True)
        .line_width(0)
        .fill_opacity(70)
        .legend(
            common.VizLegendOptions()
            .display_mode(choices.LegendDisplayMode.LIST)
            .placement(choices.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )


def new_dashboard(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """An empty one: last 15 minutes, anew every 5 s, changed only in code."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .time("now-15m", "now")
        .refresh("5s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Gridmesh").type(DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True))
    )
