"""The commands of `selfmask cache` from end to end: what they print, and their exit codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

WIDTH = 4
SPLITS = ("train", "train", "valid", "test")


def key(encoder: str = "e") -> CacheKey:
    return CacheKey.imported(encoder, "0" * 64)


def fill(path: Path, ids: list[str], encoder: str = "e", complete: bool = True) -> TokenStore:
    store = TokenStore.create(path, key(encoder), WIDTH)
    rng = np.random.default_rng(len(ids))
    lengths = rng.integers(1, 9, len(ids))
    store.append(
        [
            SampleTokens(i, f"digest-{i}", np.full((n, WIDTH), n, np.float32), np.ones(n, bool))
            for i, n in zip(ids, lengths, strict=True)
        ]
    )
    if complete:
        store.publish_view({i: f"digest-{i}" for i in ids})
    return store


def table(root: Path, samples: int) -> SamplesTable:
    rows = [
        {
            "sample_id": f"s{i}",
            "group_id": f"g{i}",
            "split": SPLITS[i % 4],
            "label": i % 2,
            "m_text": "words" if i else None,
            "other_text": "words",
        }
        for i in range(samples)
    ]
    info = DatasetInfo(
        name="own",
        label=LabelSpec(kind="binary", names=("outcome",)),
        modalities=tuple(ModalitySpec(name=n, kind="text", column=f"{n}_text") for n in ("m", "other")),
    )
    return SamplesTable.write(
        root, info, pd.DataFrame(rows), pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a samples table of twelve and a cache of its modality m that lacks two."""
    table(tmp_path / "samples", 12)
    fill(tmp_path / "tokens/m.zarr", [f"s{i}" for i in range(1, 10)])
    return tmp_path


def test_info_finds_the_samples_table_beside_the_cache(project: Path, run_line: Any) -> None:
    code, out, _ = run_line("cache", "info", project / "tokens/m.zarr", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["samples"] == 9
    assert facts["splits"]["train"] == {
        "samples": 6,
        "without_value": 1,
        "with_tokens": 5,
        "failed": 0,
        "not_extracted": 0,
    }
    assert sum(split["not_extracted"] for split in facts["splits"].values()) == 2
    text = run_line("cache", "info", project / "tokens/m.zarr")[1]
    assert "tokens per sample" in text
    assert "#" in text
    assert "valid: 3 samples" in text
    (project / "samples").rename(project / "elsewhere")
    assert "splits" not in json.loads(run_line("cache", "info", project / "tokens/m.zarr", "--json")[1])
    words = ("cache", "info", project / "tokens/m.zarr", "--samples", project / "elsewhere", "--json")
    assert json.loads(run_line(*words)[1])["splits"] == facts["splits"]


def test_diff_says_same_different_and_error(project: Path, run_line: Any) -> None:
    first = project / "tokens/m.zarr"
    fill(project / "same.zarr", [f"s{i}" for i in range(1, 10)])
    fill(project / "more.zarr", [f"s{i}" for i in range(1, 12)])
    code, out, _ = run_line("cache", "diff", first, project / "same.zarr")
    assert (code, out.splitlines()[-1]) == (0, "same")
    code, out, _ = run_line("cache", "diff", first, project / "more.zarr", "--json")
    assert code == 1
    assert json.loads(out)["only_second"] == 2
    code, out, err = run_line("cache", "diff", first, project / "none.zarr")
    assert (code, out) == (2, "")
    assert "none.zarr" in err


def test_merge_prints_what_it_wrote(project: Path, run_line: Any) -> None:
    first, second = project / "tokens/m.zarr", project / "more.zarr"
    fill(second, ["s10", "s11"])
    code, out, _ = run_line("cache", "merge", first, second, "--into", project / "c.zarr", "--json")
    assert code == 0
    assert json.loads(out) == {
        "into": str(project / "c.zarr"),
        "parts_copied": 2,
        "samples_copied": 11,
        "samples_rewritten": 0,
        "failures": 0,
        "view": True,
    }
    fill(project / "other.zarr", ["s1"], "another")
    code, out, err = run_line("cache", "merge", first, project / "other.zarr", "--into", project / "d.zarr")
    assert (code, out) == (2, "")
    assert "encoder: 'e' and 'another'" in err
    assert err.count("\n") == 1


def test_compact_prints_what_is_freed(project: Path, run_line: Any) -> None:
    path = project / "tokens/m.zarr"
    fill(path, ["s20"], complete=False)
    code, out, _ = run_line("cache", "compact", path, "--drop-dead")
    assert code == 0
    assert "1 dead ones younger than a day kept" in out
    code, out, _ = run_line("cache", "compact", path, "--drop-dead", "--now", "--json")
    report = json.loads(out)
    assert (code, report["dropped"], report["parts_after"]) == (0, 1, 1)
    assert report["bytes_freed"] == report["bytes_replaced"] - report["bytes_written"]
    assert run_line("cache", "verify", path)[0] == 0


def test_import_export_and_plot_print_what_they_wrote(project: Path, run_line: Any) -> None:
    params = ("--params", Path(__file__).parents[2] / "params.yaml")
    np.savez(project / "x.npz", s1=np.ones((2, 3)), s2=np.full((1, 3), np.nan))
    into = project / "tokens/imported.zarr"
    words = ("cache", "import", project / "x.npz", "--format", "npz", "--into", into, "--encoder", "mine", *params)
    code, out, err = run_line(*words)
    assert code == 0, err
    assert "1 samples added, 1 in all; 1 failed: holds NaN" in out
    code, out, _ = run_line(*words, "--json")
    assert json.loads(out)["added"] == 0
    code, out, _ = run_line("cache", "export", into, "--format", "parquet", "--out", project / "x.parquet", "--json")
    assert (code, json.loads(out)["samples"]) == (0, 1)
    code, out, _ = run_line("cache", "plot", project / "tokens/m.zarr", "--out", project / "p.png")
    assert (code, out) == (0, f"wrote {project / 'p.png'}: 9 samples\n")
    assert (project / "p.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run_line(*words[:4], "csv", *words[5:])
    assert (code, out) == (2, "")
    assert err.startswith("error: --format 'csv'")


def test_an_upload_is_read_at_its_url_and_only_new_files_travel(tmp_path: Path, run_line: Any) -> None:
    store = fill(tmp_path / "m.zarr", ["a", "b"])
    url = "memory://bucket/upload-command/m.zarr"
    code, out, _ = run_line("cache", "upload", store.path, url, "--json")
    assert code == 0
    whole = json.loads(out)["files"]
    assert TokenStore.open(url).view() == store.view()
    code, out, _ = run_line("cache", "upload", store.path, url, "--json")
    assert json.loads(out)["files"] < whole / 2
    code, out, err = run_line("cache", "upload", store.path, tmp_path / "elsewhere.zarr")
    assert (code, out, err.count("\n")) == (2, "", 1)
