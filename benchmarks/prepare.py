"""Time and memory of `prepare mimic4` beside polars' own scan, filter and write of the same gzip csv, in the same run.

    python -m benchmarks.prepare --other-events 20000000 --stays 4300 --out docs/benchmarks.md

Each measurement is a process of its own; ours and polars' take turns, so that other load on the machine meets both.
`pass` is our reading of chartevents and labevents into buckets; `tables` the preparation from raw folder to samples
table without films, `whole` with some 3,000 of them. A simulated cohort is written first (minutes), or taken from
--folder.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.output import write_section
from pipelines.simulate.icu.cohort import simulate_icu

SECTION = "## Preparation of MIMIC-IV"
OPTIONS = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())["datasets"]["icu"]["options"]
START = "import resource, sys, time; from pathlib import Path; raw, out = map(Path, sys.argv[1:3]); "
END = "; print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"
WORKS = {
    "polars": (
        "import polars as pl; from extract.sources.mimic4 import events, variables; "
        "columns = events.COLUMNS['chart']; items = list(variables.chart_places(paper=False)); "
        "started = time.monotonic(); "
        "rows = pl.scan_csv(raw / 'icu/chartevents.csv.gz', schema_overrides=columns, infer_schema=False); "
        "rows.select(list(columns)).filter(pl.col('itemid').is_in(items)).sink_parquet(out / 'rows.parquet')"
    ),
    "pass": (
        "from collections import Counter; from extract.sources.mimic4 import cohort, events, layout, options; "
        f"chosen = options.parse_options({OPTIONS!r}); started = time.monotonic(); found = layout.open_layout(raw); "
        "stays = cohort.read_cohort(found, chosen, cohort.Funnel(), Counter()); "
        "events.collect_events(found, stays, chosen, out, Counter())"
    ),
    "tables": (
        "from extract.sources.mimic4.prepare import prepare_mimic4; bare = out / 'bare'; bare.mkdir(); "
        "[(bare / name).symlink_to((raw / name).resolve()) for name in ('hosp', 'icu', 'note')]; "
        f"started = time.monotonic(); prepare_mimic4(bare, out / 'samples', {OPTIONS!r})"
    ),
    "whole": (
        "from extract.sources.mimic4.prepare import prepare_mimic4; started = time.monotonic(); "
        f"prepare_mimic4(raw, out / 'samples', {OPTIONS!r})"
    ),
}


def measure(work: str, raw: Path, out: Path) -> tuple[float, float]:
    """Return seconds and peak resident memory (GB) of one process."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    line = [sys.executable, "-c", START + WORKS[work] + END, str(raw), str(out)]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    print(f"{work}: {seconds:.1f} s, {peak:.2f} GB", flush=True)
    return seconds, peak


def section(results: dict[str, list[tuple[float, float]]], raw: Path, command: str) -> str:
    """Return the section of the page."""
    size = (raw / "icu/chartevents.csv.gz").stat().st_size
    lines = [SECTION, "", f"`{command}`: chartevents of {size / 1e6:.0f} MB gzip; {os.cpu_count()} cores "
             f"({platform.machine()}), load average {os.getloadavg()[0]:.1f}; {len(results['polars'])} rounds in turn; "
             "median, smallest and largest.", "", "| work | seconds | peak memory, GB |", "|---|---|---|"]  # fmt: skip
    medians = {}
    for work, runs in results.items():
        seconds, peaks = zip(*runs, strict=True)
        medians[work] = statistics.median(seconds)
        lines.append(f"| {work} | {medians[work]:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {max(peaks):.2f} |")
    lines += ["", f"- pass / polars: {medians['pass'] / medians['polars']:.2f} (bar 2)",
              f"- tables / polars: {medians['tables'] / medians['polars']:.2f} (bar 2)",
              f"- whole, films included / polars: {medians['whole'] / medians['polars']:.2f}",
              f"- peak memory of the whole: {max(peak for _, peak in results['whole']):.2f} GB (bar 1.5)"]  # fmt: skip
    return "\n".join(lines) + "\n"


@contextmanager
def _workplace(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> None:
    """Simulate, measure, print, and write the section."""
    parser = argparse.ArgumentParser(description="Preparation of MIMIC-IV beside polars' scan of the same file.")
    parser.add_argument("--other-events", type=int, default=20_000_000, help="rows that no variable uses")
    parser.add_argument("--stays", type=int, default=4300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to simulate and write; kept, and a cohort there is used")
    parser.add_argument("--out", type=Path, help="page whose section is replaced")
    arguments = parser.parse_args()
    with _workplace(arguments.folder) as folder:
        raw = folder / "raw"
        if not (raw / "expected.json").is_file():
            simulate_icu(raw, arguments.stays, 0, other_events=arguments.other_events)
        results: dict[str, list[tuple[float, float]]] = {work: [] for work in WORKS}
        for _ in range(arguments.rounds):
            for work, runs in results.items():
                runs.append(measure(work, raw, folder / "out"))
        command = f"python -m benchmarks.prepare --other-events {arguments.other_events} --stays {arguments.stays}"
        text = section(results, raw, command)
    print(text)
    if arguments.out:
        write_section(arguments.out, text)


if __name__ == "__main__":
    main()
