"""How fast the token cache is beside the same ragged tokens in other forms, on this machine, in the same run.

    python -m benchmarks.cache --gb 2 --out docs/benchmarks.md

Every figure is GB/s of stored float16 tokens in a warm page cache, the median over rounds; within a round ours, the raw
file, the gather from a resident array and one other form take turns, so that other load on the machine meets all of
them. Minibatches are padded float32. Needs room for three copies of the data on disk and in memory; peers that are not
installed are named and left out (`pip install zarrs tensorstore datasets webdataset mosaicml-streaming lmdb`).
"""

import argparse
import time
from pathlib import Path

from benchmarks.cache.bench import Bench
from benchmarks.cache.forms import FORMS
from benchmarks.cache.table import section
from benchmarks.output import workplace, write_section


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(description="The token cache beside other forms of the same tokens.")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder there is removed at the end")
    parser.add_argument("--forms", help="names of the other forms to compare, separated by commas; all by default")
    parser.add_argument("--out", type=Path, help="page whose section is replaced")
    arguments = parser.parse_args()
    wanted = arguments.forms.split(",") if arguments.forms else [form.name for form in FORMS]
    skipped = [form.name for form in FORMS if form.name not in wanted or not form.installed()]
    with workplace("cache", arguments.folder) as folder:
        bench = Bench(folder, arguments.gb, arguments.rounds)
        bench.write()
        for form in FORMS:
            started = time.monotonic()
            if form.name not in skipped:
                bench.compare(form)
            said = "left out" if form.name in skipped else f"{time.monotonic() - started:.0f} s"
            print(f"{form.name}: {said}", flush=True)
        bench.epochs()
        text = section(bench, skipped)
    print(text)
    if arguments.out:
        write_section(arguments.out, text)


if __name__ == "__main__":
    main()
