"""dvc.yaml: every stage resolves, its command parses, and it names what it depends on."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
LAYERS = ("cache", "extract", "train", "pipelines")
MAY_IMPORT = {
    "prepare": {"extract", "cache"},
    "fit": {"extract", "cache"},
    "extract": {"extract", "cache"},
    "train": {"train", "extract", "cache"},
    "finetune": {"train", "extract", "cache"},
    "evaluate": {"train", "extract", "cache"},
}


def resolved(name: str) -> dict[str, Any]:
    """Return the stages as DVC resolves them for a data set, without a DVC repository."""
    from dvc.parsing.context import Context

    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["dataset"] = {"name": name, "raw": f"data/raw/{name}", "modalities": list(raw["datasets"][name]["encoders"])}
    context = Context(raw)
    found: dict[str, Any] = {}
    for stage, definition in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for key, values in _instances(stage, definition, context):
            with context.set_temporarily(values):
                body = definition.get("do", definition)
                found[key] = context.resolve({k: v for k, v in body.items() if k not in ("foreach", "matrix")})
    return found


def _instances(stage: str, definition: dict[str, Any], context: Any) -> list[tuple[str, dict[str, Any]]]:
    if "foreach" in definition:
        items = context.resolve(definition["foreach"])
        return [(f"{stage}@{item}", {"item": item}) for item in items]
    if "matrix" in definition:
        axes = context.resolve(definition["matrix"])
        pairs = [(method, seed) for method in axes["method"] for seed in axes["seed"]]
        return [(f"{stage}@{m}-{s}", {"item": {"method": m, "seed": s}}) for m, s in pairs]
    return [(stage, {})]


@pytest.fixture(params=list(RAW["datasets"]))
def stages(request: pytest.FixtureRequest) -> dict[str, Any]:
    return resolved(request.param)


def test_every_command_parses(stages: dict[str, Any], parse: Any) -> None:
    for name, stage in stages.items():
        words = shlex.split(stage["cmd"])
        assert words[:3] == ["python", "-m", "pipelines"], name
        parse(words[3:])


def test_every_parameter_exists(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        for key in stage["params"]:
            value: Any = RAW
            for part in key.split("."):
                assert part in value, f"{name}: {key}"
                value = value[part]


def test_dependencies_are_the_packages_that_a_stage_may_import(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        expected = MAY_IMPORT.get(name.split("@")[0])
        if expected is not None:
            assert {dep for dep in stage["deps"] if dep in LAYERS} == expected, name


def test_a_stage_s_inputs_are_outputs_of_another_or_raw(stages: dict[str, Any]) -> None:
    outputs = [Path(path) for stage in stages.values() for path in _outputs(stage)]
    for name, stage in stages.items():
        for dep in map(Path, stage["deps"]):
            made = any(out == dep or dep in out.parents or out in dep.parents for out in outputs)
            assert made or (ROOT / dep).exists() or dep.parts[:2] == ("data", "raw"), f"{name}: {dep}"


def test_a_training_setting_leaves_stage_one_alone(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        if name.split("@")[0] in ("prepare", "fit", "extract"):
            read = {key.split(".")[-1] if ".settings." in key else key.split(".")[0] for key in stage["params"]}
            assert not read & {"train", "model", "selfmask", "joint", "preset", "presets"}, name


def test_training_reads_every_setting_of_its_loop_but_the_list_of_methods(stages: dict[str, Any]) -> None:
    stage = next(stage for name, stage in stages.items() if name.startswith("train@"))
    read = {key.removeprefix("train.") for key in stage["params"] if key.startswith("train.")}
    assert read == set(RAW["train"]) - {"methods"}


def test_finished_work_survives_a_kill_and_metrics_stay_in_git(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        options = [value for out in stage.get("outs", []) if isinstance(out, dict) for value in out.values()]
        if name.split("@")[0] in ("fit", "extract", "train", "finetune"):
            assert options == [{"persist": True}], name
        for kind in ("metrics", "plots"):
            assert all(list(out.values()) == [{"cache": False}] for out in stage.get(kind, [])), name


def test_no_two_stages_write_the_same_place(stages: dict[str, Any]) -> None:
    outputs = [path for stage in stages.values() for path in _outputs(stage)]
    assert len(outputs) == len(set(outputs))


def _outputs(stage: dict[str, Any]) -> list[str]:
    entries = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in entries]
