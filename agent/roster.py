"""The one table of collectors: a line for each built-in one, and the entry points `powerbench.collectors`."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, cast

from powerbench_agent.core.options import CollectorOptions, ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

    from powerbench_agent.core.model import CollectorModule, Metric


_OLD_IMPORT = (
    "imports powerbench.…, which is called powerbench_agent now; "
    "change its imports from powerbench.agent.model and the like to powerbench_agent.collector"
)


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
    # Last: if two collectors share a metric family, the first one decides its type and keeps its series.
    "textfile": Entry("powerbench_agent.collectors.textfile"),
}


def load_modules() -> dict[str, CollectorModule]:
    """Return every collector's module by name, built-in ones first.

    Raises: ConfigError if an installed plug-in cannot be used.
    """
    modules = {name: _module(importlib.import_module(entry.module)) for name, entry in BUILT_IN.items()}
    for point in entry_points(group="powerbench.collectors"):
        try:
            if point.name in modules:
                raise ValueError("there is a collector of this name already; rename the entry point")
            modules[point.name] = _load_plug_in(point)
        except ValueError as error:
            problem = Problem(f"plug-in {point.value}", point.name, str(error))
            raise ConfigError([problem]) from error
    return modules


def _load_plug_in(point: EntryPoint) -> CollectorModule:
    """Return the module that an entry point leads to. Raises: ValueError in words that say what to do."""
    try:
        module = point.load()
    except Exception as error:
        name = getattr(error, "name", None) or ""
        if isinstance(error, ImportError) and name.partition(".")[0] == "powerbench":
            raise ValueError(_OLD_IMPORT) from error
        raise ValueError(f"cannot be imported: {error}; fix or uninstall it") from error
    missing = [name for name in ("Options", "METRICS", "open_collector") if not hasattr(module, name)]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}; see docs/collectors.md")
    return _module(module)


def _module(module: object) -> CollectorModule:
    return cast("CollectorModule", module)


def options_of(modules: Mapping[str, CollectorModule]) -> dict[str, type[CollectorOptions]]:
    """Return what `[collectors.NAME]` may hold, by name."""
    return {name: module.Options for name, module in modules.items()}


def share_metrics(modules: Mapping[str, CollectorModule]) -> list[Metric]:
    """Return what the shares of the modules' claims are called: the node emits these for them."""
    return [metric for module in modules.values() for metric in getattr(module, "SHARES", ())]
