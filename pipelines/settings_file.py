"""YAML files that a person writes: read safely, and what a schema says against them told in the file's own words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cache.errors import UserError


def read_yaml(path: Path, absent: str) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: the message `absent` where there is no such file, or what is wrong with its text.
    """
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(absent) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return every problem that pydantic found in a file of the schema `root`, with the keys that are known there."""
    return "; ".join(_told(problem, root) for problem in error.errors())


def _told(problem: Any, root: type[BaseModel]) -> str:
    where = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        section = f"section '{'.'.join(where[:-1])}'" if where[:-1] else "the file"
        return f"unknown key '{where[-1]}' in {section}. Known: {_known(where[:-1], root)}"
    if problem["type"] == "missing":
        return f"'{'.'.join(where)}' is missing"
    whole = not where or problem["type"] == "value_error"  # a section's own message says what is wrong in it
    given = "" if whole else f" (given: {problem.get('input')!r})"
    return f"{'.'.join(where) or 'the file'}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _known(where: Sequence[str], root: type[BaseModel]) -> str:
    """Return the fields of the settings class that a path leads to, through mappings and tagged unions."""
    kind: Any = root
    for part in where:
        kind = _inner(kind, part)
    return ", ".join(sorted(kind.model_fields)) if _is_settings(kind) else "see the settings classes"


def _inner(kind: Any, part: str) -> Any:
    if _is_settings(kind):
        field = kind.model_fields.get(part)
        return _without_extras(field.annotation) if field else None
    if get_origin(kind) is dict:
        return _without_extras(get_args(kind)[1])
    for choice in get_args(kind):  # a union of encoder settings: pydantic names the member by its tag
        tag = getattr(choice, "model_fields", {}).get("type")
        if tag is not None and part in get_args(tag.annotation):
            return choice
    return None


def _without_extras(annotation: Any) -> Any:
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    settings = [choice for choice in get_args(bare) if _is_settings(choice)]
    return settings[0] if len(settings) == 1 and get_origin(bare) is not dict else bare


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
