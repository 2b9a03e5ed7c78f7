"""The one table of collectors: a line each, and whatever entry points `powerbench.collectors` name."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, cast

from powerbench.agent.config import CollectorOptions, ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench.agent.model import CollectorModule


class Entry(NamedTuple):
    """Where a collector lives, and the port it has in the classic one-exporter-a-port layout."""

    module: str
    port: int | None = None
    port_variable: str | None = None  # the environment variable that overrides its own port


BUILT_IN: Mapping[str, Entry] = {
    "rapl": Entry("powerbench.collectors.rapl", 9510, "CPU_EXPORTER_PORT"),
    "nvml": Entry("powerbench.collectors.nvml", 9511, "GPU_EXPORTER_PORT"),
    "drm": Entry("powerbench.collectors.drm"),
    "ffmpeg": Entry("powerbench.collectors.ffmpeg", 9506, "FFMPEG_EXPORTER_PORT"),
    "docker": Entry("powerbench.collectors.docker", 9501, "DOCKER_STATS_PORT"),
    "results": Entry("powerbench.collectors.results", 9502, "RESULTS_EXPORTER_PORT"),
    "nginx_rtmp": Entry("powerbench.collectors.nginx_rtmp"),
    "host": Entry("powerbench.collectors.host"),
    "estimate": Entry("powerbench.collectors.estimate"),
    # After all that is ours: where two share a family, the first has its type and its series.
    "textfile": Entry("powerbench.collectors.textfile"),
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
