"""Reads the data files that the package ships: countries, round trips, hardware, models, worlds.

Origin, date, licence and changes of every file are in `isochrone/data/README.md`. A damaged file is
a broken installation, so these functions raise InvalidInput with the file and line.
"""

import csv
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from isochrone.core.errors import InvalidInput, NotFound
from isochrone.core.estimate.engine_rates_table import EngineRates
from isochrone.core.estimate.hardware import HardwareTable
from isochrone.core.estimate.power import PowerTable
from isochrone.core.estimate.round_trip import DistanceRtt, Position, Region, RoundTripTable
from isochrone.core.estimate.service import Rates
from isochrone.core.residency.blocs import Blocs

T = TypeVar("T")

DATA = Path(str(files("isochrone"))) / "data"
WORLD_MAP = DATA / "maps" / "world-110m.json"

BLOC_COLUMNS = {
    "EU": "eu_member",
    "EEA": "eea_member",
    "GDPR": "gdpr_direct",
    "ADEQUATE": "eu_adequate",
}


def load_blocs() -> Blocs:
    """Every country code and the blocs EU, EEA, GDPR and ADEQUATE."""
    rows = _rows("countries.csv", dict)
    return Blocs(
        countries=frozenset(row["iso2"] for row in rows),
        members={
            bloc: frozenset(row["iso2"] for row in rows if row[column] == "1")
            for bloc, column in BLOC_COLUMNS.items()
        },
    )


def load_country_centres() -> dict[str, Position]:
    """Where the people of each country live on average; a few uninhabited ones are missing."""
    return dict(
        _rows(
            "country_centres.csv",
            lambda row: (
                row["iso2"],
                Position(
                    latitude_deg=float(row["latitude_deg"]),
                    longitude_deg=float(row["longitude_deg"]),
                ),
            ),
        )
    )


def load_round_trips() -> RoundTripTable:
    """Measured round trips between cloud regions, and medians by distance."""
    pairs = _rows(
        "network/azure_region_rtt.csv",
        lambda row: ((row["src"], row["dst"]), float(row["rtt_p95_ms"])),
    )
    return RoundTripTable(
        regions=tuple(_rows("network/azure_regions.csv", _region)),
        rtt_ms=dict(pairs),
        by_distance=tuple(_rows("network/rtt_vs_distance.csv", _distance)),
    )


def load_hardware() -> HardwareTable:
    """Rates to assume for each kind of hardware until a replica has been measured."""
    return dict(
        _rows(
            "hardware.csv",
            lambda row: (
                row["kind"],
                Rates(
                    prefill_tok_s=float(row["prefill_tok_s"]),
                    decode_tok_s=float(row["decode_tok_s"]),
                ),
            ),
        )
    )


def load_power() -> PowerTable:
    """Most watts of one of each kind of hardware."""
    return dict(_rows("hardware.csv", lambda row: (row["kind"], float(row["board_w"]))))


def load_engine_rates() -> tuple[EngineRates, ...]:
    """Engines as measured in public, and derived ones; see `tools/calibrate`."""
    return tuple(_rows("engine_rates.csv", _engine_rates))


def load_region_positions() -> dict[str, tuple[float, float]]:
    """Latitude and longitude in degrees of the cloud regions between which it was measured."""
    return dict(
        _rows(
            "network/cloud_regions.csv",
            lambda row: (
                row["region"], (float(row["latitude_deg"]), float(row["longitude_deg"]))
            ),
        )
    )


def load_baseline_parameters() -> dict[str, dict[str, dict[str, int | float | str]]]:
    """By nature of the traffic and name of the baseline: what was best on development windows."""
    text = (DATA / "baselines.json").read_text(encoding="utf-8")
    return {
        each["nature"]: {name: found["best"] for name, found in each["baselines"].items()}
        for each in json.loads(text)["found"]
    }


def load_spread() -> tuple[tuple[float, tuple[float, float, float, float]], ...]:
    """Mean km of each distance band with the p10, p50, p90 and p99 of its round trips in ms."""
    return tuple(
        _rows(
            "network/rtt_vs_distance.csv",
            lambda row: (
                float(row["km_mean"]),
                (
                    float(row["rtt_p10_ms"]), float(row["rtt_p50_ms"]), float(row["rtt_p90_ms"]),
                    float(row["rtt_p99_ms"]),
                ),
            ),
        )
    )


def bundled_model(name: str) -> Path:
    """Path of a model file that the package ships; raises NotFound with the names that exist."""
    folder = DATA / "models"
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if name not in names:
        raise NotFound(f"no bundled model {name!r}; the package ships: {', '.join(names)}")
    return folder / name


def bundled_trace(name: str) -> Path:
    """Path of a recorded trace that the package ships; raises NotFound with the names that exist.

    `name` is the file's name without its endings, as in `azure-conv-sample`.
    """
    found = {path.name.partition(".")[0]: path for path in sorted((DATA / "traces").iterdir())}
    found.pop("README", None)
    if name not in found:
        raise NotFound(f"no bundled trace {name!r}; the package ships: {', '.join(found)}")
    return found[name]


def default_world() -> str:
    """The world file of `isochrone up` without `--sites`: three sites, one model."""
    return (DATA / "worlds" / "three-sites.toml").read_text(encoding="utf-8")


def _engine_rates(row: dict[str, str]) -> EngineRates:
    def error(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    return EngineRates(
        table=row["table"], hardware=row["hardware"], engine=row["engine"], model=row["model"],
        gpus=int(row["gpus"]), precision=row["precision"],
        prefill_tok_s=float(row["prefill_tok_s"]),
        prefill_context_us=float(row["prefill_context_us"]),
        step_ms=float(row["step_ms"]), stream_ms=float(row["stream_ms"]),
        context_token_us=float(row["context_token_us"]), kv_tokens=int(row["kv_tokens"]),
        prefill_error=error("prefill_error"), decode_error=error("decode_error"),
        left_out_error=error("left_out_error"),
    )


def _region(row: dict[str, str]) -> Region:
    return Region(
        name=row["region"],
        position=Position(
            latitude_deg=float(row["latitude_deg"]), longitude_deg=float(row["longitude_deg"])
        ),
    )


def _distance(row: dict[str, str]) -> DistanceRtt:
    return DistanceRtt(km=float(row["km_mean"]), rtt_ms=float(row["rtt_p50_ms"]))


def _rows(file: str, parse: Callable[[dict[str, str]], T]) -> list[T]:
    """Parse each row of a packaged CSV file; empty cells and the code `NA` are plain text."""
    rows = []
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            try:
                rows.append(parse(row))
            except (KeyError, TypeError, ValueError) as error:
                where = f"{DATA / file}, line {reader.line_num}"
                raise InvalidInput(
                    [f"{where}: damaged ({error}); install the package again"]
                ) from error
    return rows
