"""The one table of collectors: a line each, and whatever entry points `powerbench.collectors` name."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, cast

from powerbench_agent.core.options import CollectorOptions, ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench_agent.core.model import CollectorModule, Metric


class Entry(NamedTuple):
    """Where a collector lives, and the port it has in the classic one-exporter-a-port layout."""

    module: str
    port: int | None = None
    port_variable: str | None = None  # the environment variable that overrides its own port


BUILT_IN: Mapping[str, Entry] = {
    "rapl": Entry("powerbench_agent.collectors.rapl", 9510, "CPU_EXPORTER_PORT"),
    "nvml": Entry("powerbench_agent.collectors.nvml.collector", 9511, "GPU_EXPORTER_PORT"),
    "drm": Entry("powerbench_agent.collectors.drm.collector"),
    "ffmpeg": Entry("powerbench_agent.collectors.ffmpeg.collector", 9506, "FFMPEG_EXPORTER_PORT"),
    "docker": Entry("powerbench_agent.collectors.docker.collector", 9501, "DOCKER_STATS_PORT"),
    "results": Entry("powerbench_agent.collectors.results.collector", 9502, "RESULTS_EXPORTER_PORT"),
    "nginx_rtmp": Entry("powerbench_agent.collectors.nginx_rtmp.collector"),
    "host": Entry("powerbench_agent.collectors.host"),
    "estimate": Entry("powerbench_agent.collectors.estimate"),
    # After all that is ours: where two share a family, the first has its type and its series.
    "textfile": Entry("powerbench_agent.collectors.textfile"),
}


def load_modules() -> dict[str, CollectorModule]:
    """Return every collector's module by name, built-in ones first.

    Raises: ConfigError where an installed plug-in cannot be used.
    """
    modules = {
        name: cast("CollectorModule", importlib.import_module(e.module)) for name, e in BUILT_IN.items()
    }
    for point in entry_points(group="powerbench.collectors"):
        where = f"plug-in {point.value}"
        if point.name in modules:
            raise ConfigError(
                [Problem(where, point.name, "a collector has this name already; rename the entry point")]
            )
        try:
            module = point.load()
        except Exception as error:
            raise ConfigError(
                [Problem(where, point.name, f"cannot be imported: {error}; uninstall or mend it")]
            ) from error
        if missing := [n for n in ("Options", "METRICS", "open_collector") if not hasattr(module, n)]:
            raise ConfigError(
                [Problem(where, point.name, f"lacks {', '.join(missing)}; see docs/collectors.md")]
            )
        modules[point.name] = module
    return modules


def options_of(modules: Mapping[str, CollectorModule]) -> dict[str, type[CollectorOptions]]:
    """Return what `[collectors.NAME]` may hold, by name."""
    return {name: module.Options for name, module in modules.items()}


def share_metrics(modules: Mapping[str, CollectorModule]) -> list[Metric]:
    """Return what the shares of the modules' claims are called: the node emits these for them."""
    return [metric for module in modules.values() for metric in getattr(module, "SHARES", ())]
