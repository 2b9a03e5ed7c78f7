"""`powerbench analyze`: what a results file says, as tables for people and files for programs.

Exit codes: 0 done; 1 no scenario went well, or a file could not be written; 2 usage; 69 what was asked for
is not there (any results in a directory, the extra, a Prometheus and its samples); 78 a file that was named
does not exist, or is not a results file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.bench import exits
from powerbench_agent.bench.analyze.files import Refused, need_extra, newest_in, read
from powerbench_agent.bench.exits import BadFlag

if TYPE_CHECKING:
    from powerbench_agent.bench.flags import Verbs
    from powerbench_agent.bench.statistics.groups import Analysis, Overhead
    from powerbench_agent.core.results import Rates, ResultsFile

NO_ENERGY = "the file has no energy: give --prometheus URL of the Prometheus that scraped the worker"


def add_parser(verbs: Verbs) -> None:
    """Add the verb."""
    verb = verbs.add_parser(
        "analyze",
        help="report on a results file: tables, statistics, CSV, JSON, Parquet",
        description="Print what a results file shows, with its uncertainty, and write a CSV beside\nit.",
        epilog="examples:\n"
        "  powerbench analyze\n"
        "  powerbench analyze test_results_20260101_120000.json --json all.json\n"
        "  powerbench analyze old.json --prometheus http://127.0.0.1:9090\n"
        "  powerbench analyze --all test_results --parquet runs.parquet\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(verb)


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    verb.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="?",
        help="a results file (default: the newest of --output-dir)",
    )
    verb.add_argument(
        "--output-dir", metavar="DIR", type=Path, default=Path("test_results"), help="default: ./test_results"
    )
    verb.add_argument(
        "--all",
        metavar="DIR",
        type=Path,
        help="every results file below DIR, as one table of runs and groups",
    )
    verb.add_argument("--csv", metavar="F", type=Path, help="write the CSV there (default: beside FILE)")
    verb.add_argument("--json", metavar="F", type=Path, help="write everything, with statistics, as JSON")
    verb.add_argument("--parquet", metavar="F", type=Path, help="write the CSV's columns as Parquet")
    verb.add_argument(
        "--prometheus",
        metavar="URL",
        default="",
        help="ask this Prometheus or VictoriaMetrics for the energy of an old file, and the containers' CPU",
    )
    verb.add_argument(
        "--instance",
        metavar="NAME",
        default="",
        help="the worker there, by its label (if there are several)",
    )
    for name, what in (
        ("--price-per-kwh", "price of a kWh (default: the file's)"),
        ("--carbon-intensity", "gCO2e of a kWh (default: the file's)"),
    ):
        verb.add_argument(name, metavar="X", type=_amount, help=what)
    verb.add_argument("--currency", metavar="CODE", default="", help="of the price: EUR")
    verb.add_argument("--carbon-source", metavar="TEXT", default="", help="where the intensity comes from")


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number, and not negative")
    return value


def main(flags: argparse.Namespace) -> int:
    """Analyse what the flags ask for; return the exit code."""
    try:
        need_extra("analyze")
        _check(flags)
        if flags.all is not None:
            from powerbench_agent.bench.analyze import survey  # noqa: PLC0415 - of the extra

            return survey.main(flags)
        return _one(flags)
    except BadFlag as bad:
        return exits.fail(str(bad), exits.USAGE)
    except Refused as refused:
        return exits.fail(str(refused), refused.code)


def _check(flags: argparse.Namespace) -> None:
    _check_apart(flags.csv, flags.json, flags.parquet)
    if flags.all is not None:
        for given, name in ((flags.file, "FILE"), (flags.prometheus, "--prometheus"), (flags.json, "--json")):
            if given:
                raise BadFlag(f"--all and {name} exclude each other")
    if flags.prometheus and not flags.prometheus.startswith(("http://", "https://")):
        raise BadFlag(f"--prometheus {flags.prometheus!r}: must be a URL, like http://127.0.0.1:9090")
    if flags.instance and not flags.prometheus:
        raise BadFlag("--instance needs --prometheus URL")
    if flags.currency and flags.price_per_kwh is None:
        raise BadFlag("--currency needs --price-per-kwh")
    if (flags.carbon_intensity is None) != (not flags.carbon_source):
        raise BadFlag("--carbon-intensity and --carbon-source need each other: say where the figure is from")


def _check_apart(csv: Path | None, json: Path | None, parquet: Path | None) -> None:
    """Check that no two files are one. Raises: BadFlag."""
    taken: dict[Path, str] = {}
    for name, path in (("the CSV", csv), ("--json", json), ("--parquet", parquet)):
        if path is None or (path.exists() and not path.is_file()):  # /dev/stdout takes them all
            continue
        if other := taken.get(path.resolve()):
            raise BadFlag(f"{name} {path} is {other} as well: give each a file of its own")
        taken[path.resolve()] = name


def _one(flags: argparse.Namespace) -> int:
    from powerbench_agent.bench.analyze import tables  # noqa: PLC0415 - of the extra
    from powerbench_agent.bench.statistics import groups  # noqa: PLC0415 - of the extra

    path = flags.file or newest_in(flags.output_dir)
    for out in (flags.csv, flags.json, flags.parquet):
        if out is not None and out.resolve() == path.resolve():
            raise BadFlag(f"{out} is the results file itself: it is not written over")
    beside = flags.csv or path.with_name(f"{path.name.removesuffix('.json')}.csv")
    _check_apart(beside, flags.json, flags.parquet)
    results, overheads, notes = _with_prometheus(read(path), flags)
    rates, odd = rates_of(results, flags)
    found = groups.analyze(results, overheads)
    console = tables.make_console()
    lines = [*(f"Note: {note}." for note in (*notes, *odd)), *tables.sentences(found, rates)]
    if found.unmeasured and not flags.prometheus:
        lines.append(f"Note: {NO_ENERGY}.")
    tables.say(console, tables.head(results))
    tables.show(console, tables.analysis_tables(found, rates), lines)
    if not found.tests and not found.baselines and not found.unmeasured:
        why = "no scenario has energy that can be" if found.impossible else "no scenario went well"
        raise Refused(f"{path}: {why}: nothing to analyse", exits.FAILED)
    _export(found, rates, beside, flags)
    tables.announce(console, {"CSV": beside, "JSON": flags.json, "Parquet": flags.parquet})
    return exits.OK


def _with_prometheus(
    results: ResultsFile, flags: argparse.Namespace
) -> tuple[ResultsFile, dict[str, Overhead], list[str]]:
    """Return the file with what a Prometheus has beside it, if one is named. Raises: Refused."""
    if not flags.prometheus:
        return results, {}, []
    from powerbench_agent.bench.analyze import prometheus  # noqa: PLC0415 - heavy

    try:
        return prometheus.fill(results, flags.prometheus, flags.instance)
    except prometheus.NotThere as missing:
        raise Refused(f"--prometheus: {missing}", exits.UNAVAILABLE) from None


def _export(found: Analysis, rates: Rates, beside: Path, flags: argparse.Namespace) -> None:
    """Write the files. Raises: Refused."""
    from powerbench_agent.bench.analyze import export  # noqa: PLC0415 - of the extra

    rows = export.rows(found, rates)
    try:
        export.write_csv(beside, rows, export.COLUMNS)
        if flags.json:
            export.write_json(flags.json, export.document(found, rates))
        if flags.parquet:
            export.write_parquet(flags.parquet, rows, export.COLUMNS)
    except export.Failed as failed:
        hint = "" if flags.csv or failed.path != beside else "; give --csv FILE to have it elsewhere"
        raise Refused(f"{failed}{hint}", exits.FAILED) from None


def rates_of(results: ResultsFile, flags: argparse.Namespace) -> tuple[Rates, list[str]]:
    """Return the file's rates, or the flags' in their place, and which of the file's are impossible.

    A price and its currency are one.
    """
    from msgspec import structs  # noqa: PLC0415 - beside its only use

    rates, odd = results.rates, []
    for name in ("price_per_kwh", "gco2e_per_kwh"):
        value = getattr(rates, name)
        if value is not None and not 0 <= value < math.inf:
            odd.append(f"the file's {name} is {value:g}, which is impossible: it is left out")
            rates = structs.replace(rates, **{name: None})
    if flags.price_per_kwh is not None:
        rates = structs.replace(rates, price_per_kwh=flags.price_per_kwh, currency=flags.currency)
    if flags.carbon_intensity is not None:
        rates = structs.replace(rates, gco2e_per_kwh=flags.carbon_intensity, gco2e_source=flags.carbon_source)
    return rates, odd
