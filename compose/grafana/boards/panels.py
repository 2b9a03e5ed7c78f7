"""The kinds of panel that the dashboards are made of, each with the project's conventions.

Current figures are instant queries: when scraping stops they disappear, instead of showing the last
value. The description of every panel tells what its figure is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    prometheus,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders import (
    common as common_builders,
)
from grafana_foundation_sdk.builders import (
    dashboard as dashboard_builders,
)
from grafana_foundation_sdk.builders import (
    stat as stat_builders,
)
from grafana_foundation_sdk.builders import (
    table as table_builders,
)
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models import prometheus as prometheus_models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from boards.queries import Query

DATASOURCE: Final = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
NOTHING: Final = "no data"

# In columns (of 24) and rows (of 38 pixels): legible on a screen of 1920 by 1080.
SMALL: Final = (4, 4)
HALF: Final = (12, 8)
THIRD: Final = (8, 8)
WHOLE: Final = (24, 9)

Panel = timeseries.Panel | stat_builders.Panel | table_builders.Panel | bargauge.Panel | statetimeline.Panel
Kind = TypeVar(
    "Kind",
    timeseries.Panel,
    stat_builders.Panel,
    table_builders.Panel,
    bargauge.Panel,
    statetimeline.Panel,
)
Steps = tuple[tuple[float, str], ...]  # (from this value on, colour), upwards

GOOD, WARN, BAD = "green", "orange", "red"


def thresholds(steps: Steps, base: str = GOOD) -> dashboard_builders.ThresholdsConfig:
    """Return colours by value: `base` below the first step."""
    all_steps = [dashboard.Threshold(value=None, color=base)]
    all_steps += [dashboard.Threshold(value=float(value), color=color) for value, color in steps]
    return dashboard_builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(all_steps)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    size: tuple[int, int] = HALF,
    step: str = "",
    stacked: bool = False,
    lines: Steps = (),
    least: float | None = 0,
    most: float | None = None,
    nothing: str = NOTHING,
) -> timeseries.Panel:
    """Return curves over time.

    `step`: minimum interval; `lines`: dashed thresholds; `least`, `most`: limits of the axis, None: auto.
    """
    panel = (
        _begun(timeseries.Panel(), title, description, size, nothing)
        .unit(unit)
        .color_scheme(_by(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(40 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
        .span_nulls(False)
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .calcs(["mean", "max", "last"])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if lines:
        panel.thresholds(thresholds(lines, "transparent"))
        panel.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    for place, query in enumerate(queries):
        panel.with_target(_over_time(place, query, step))
    return panel


def stat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Steps = (),
    base: str = "text",
    decimals: int | None = None,
    size: tuple[int, int] = SMALL,
    step: str = "",
    nothing: str = NOTHING,
) -> stat_builders.Panel:
    """Return one current figure."""
    panel = (
        _begun(stat_builders.Panel(), title, description, size, nothing)
        .unit(unit)
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(_by(dashboard.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds(steps, base))
        .with_target(_now(0, query, step))
    )
    return panel if decimals is None else panel.decimals(decimals)


def bars(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    size: tuple[int, int] = HALF,
    steps: Steps = (),
    base: str = "blue",
    decimals: int | None = None,
    step: str = "",
    nothing: str = NOTHING,
) -> bargauge.Panel:
    """Return current figures as bars beside their names."""
    panel = (
        _begun(bargauge.Panel(), title, description, size, nothing)
        .unit(unit)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .name_placement(common.BarGaugeNamePlacement.LEFT)
        .value_mode(common.BarGaugeValueMode.TEXT)
        .show_unfilled(False)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(_by(dashboard.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds(steps, base))
    )
    if decimals is not None:
        panel.decimals(decimals)
    for place, query in enumerate(queries):
        panel.with_target(_now(place, query, step))
    return panel


def table(
    title: str,
    description: str,
    columns: Mapping[str, tuple[str, str]],
    labels: Mapping[str, str],
    *,
    sort_by: str,
    size: tuple[int, int] = WHOLE,
    nothing: str = NOTHING,
) -> table_builders.Panel:
    """Return current figures, one row for each series.

    `columns`: heading → (expression, unit); `labels`: label → heading; other labels are not shown.
    """
    panel = (
        _begun(table_builders.Panel(), title, description, size, nothing)
        .filterable(True)
        .sort_by([common_builders.TableSortByFieldState().display_name(sort_by).desc(True)])
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    )
    # Grafana calls the only value of a table Value, and several Value #A, Value #B, …
    names = {
        head: f"Value #{chr(65 + at)}" if len(columns) > 1 else "Value" for at, head in enumerate(columns)
    }
    order = [*labels, *names.values()]
    panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": order}})
    )
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "indexByName": {name: at for at, name in enumerate(order)},
                "renameByName": {**labels, **{name: head for head, name in names.items()}},
            },
        )
    )
    for place, (head, (expr, unit)) in enumerate(columns.items()):
        panel.with_target(_now(place, expr).format(prometheus_models.PromQueryFormat.TABLE))
        panel.override_by_name(head, [dashboard.DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def states(
    title: str,
    description: str,
    names: Mapping[int, tuple[str, str]],
    *queries: Query,
    size: tuple[int, int] = HALF,
    step: str = "",
    nothing: str = NOTHING,
) -> statetimeline.Panel:
    """Return a band of states for each series. `names`: value → (what it means, its colour)."""
    mapped = {
        str(value): dashboard.ValueMappingResult(text=text, color=color, index=place)
        for place, (value, (text, color)) in enumerate(names.items())
    }
    panel = (
        _begun(statetimeline.Panel(), title, description, size, nothing)
        .unit("none")
        .mappings([dashboard.ValueMap(options=mapped)])
        .color_scheme(_by(dashboard.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds((), "text"))
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
    )
    for place, query in enumerate(queries):
        panel.with_target(_over_time(place, query, step))
    return panel


def linked(panel: Panel, title: str, url: str) -> Panel:
    """Return the panel with a link on each of its values; `${__field.labels.NAME}` is a series' label."""
    link = dashboard_builders.DashboardLink(title).url(url)
    return panel.data_links([link])


def _begun(panel: Kind, title: str, description: str, size: tuple[int, int], nothing: str) -> Kind:
    return (
        panel.title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(size[0])
        .height(size[1])
        .no_value(nothing)
    )


def _by(mode: dashboard.FieldColorModeId) -> dashboard_builders.FieldColor:
    return dashboard_builders.FieldColor().mode(mode)


def _target(place: int, expr: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(chr(65 + place)).datasource(DATASOURCE).expr(expr)


def _over_time(place: int, query: Query, step: str) -> prometheus.Dataquery:
    target = _target(place, query.expr).legend_format(query.legend).range()
    return target.interval(step) if step else target


def _now(place: int, query: Query | str, step: str = "") -> prometheus.Dataquery:
    expr, legend = (query, "") if isinstance(query, str) else query
    target = _target(place, expr).instant().format(prometheus_models.PromQueryFormat.TIME_SERIES)
    if legend:
        target.legend_format(legend)
    return target.interval(step) if step else target
