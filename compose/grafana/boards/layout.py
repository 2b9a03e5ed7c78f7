"""From panels to a dashboard: places on the grid, variables, links to the other dashboards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard

from boards.panels import DATASOURCE
from boards.queries import MACHINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from boards.panels import Panel

COLUMNS: Final = 24
TAG: Final = "powerbench"
HOSTS: Final = f"query_result({MACHINES})"
# Machines without the label `host` are not told apart here: a label of more than one selector has no query.
_CHOSEN: Final = 'host=~"$host|"'


class Row(NamedTuple):
    """Panels under a title. `closed`: collapsed at first, for what is not on every machine."""

    title: str
    panels: Sequence[Panel]
    closed: bool = False


def choice(
    name: str,
    label: str,
    query: str,
    *,
    everything: bool = True,
    newest_first: bool = False,
    regex: str = "",
) -> builders.QueryVariable:
    """Return a variable with several values. `everything`: it has the option All, selected at first.

    `regex`: its first group is the value within the query's answer.
    """
    order = dashboard.VariableSort
    variable = (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .definition(query)
        .query({"qryType": 1, "query": query, "refId": f"variable-{name}"})
        .multi(True)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(order.ALPHABETICAL_DESC if newest_first else order.NATURAL_ASC)
    )
    if regex:
        variable.regex(regex)
    if everything:
        every = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
        # .* and not .+, so that All includes series without the label.
        variable.include_all(True).all_value(".*").current(every)
    return variable


def board(
    uid: str,
    title: str,
    description: str,
    rows: Iterable[Row],
    variables: Iterable[builders.QueryVariable] = (),
    *,
    since: str = "now-1h",
) -> dashboard.Dashboard:
    """Return a dashboard; the variables `datasource` and `host` come first on each."""
    made = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .editable()
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time(since, "now")
        .link(
            builders.DashboardLink("powerbench")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("host", "Host", HOSTS, regex='/host="([^"]+)"/'))
    ).build()
    templating = made.templating
    if templating.list_val is not None:
        templating.list_val.extend(variable.build() for variable in variables)
    made.panels = list(_placed(rows))
    return made


def matching(metric: str, label: str, *matchers: str) -> str:
    """Return the query of a variable: a label's values on the selected machines."""
    return f"label_values({metric}{{{','.join((_CHOSEN, *matchers))}}}, {label})"


def _placed(rows: Iterable[Row]) -> Iterator[dashboard.Panel | dashboard.RowPanel]:
    """Yield rows and panels from left to right and downwards, numbered."""
    top, number = 0, 0
    for row in rows:
        number += 1
        head = builders.Row(row.title).id(number).collapsed(row.closed).build()
        head.grid_pos = dashboard.GridPos(x=0, y=top, w=COLUMNS, h=1)
        top += 1
        x, y, height = 0, top, 0
        placed = []
        for panel in (maker.build() for maker in row.panels):
            number += 1
            place = panel.grid_pos or dashboard.GridPos()
            if x + place.w > COLUMNS:
                x, y, height = 0, y + height, 0
            place.x, place.y = x, y
            panel.id_val, panel.grid_pos = number, place
            x, height = x + place.w, max(height, place.h)
            placed.append(panel)
        if row.closed:
            head.panels = placed
            yield head
        else:
            yield head
            yield from placed
            top = y + height
