"""Checkpoints of training scripts, outside of transformers: read as tensors, whatever objects lie beside them.

Such files hold the arguments or the record of a run as objects of the script's own classes. They are read with
`weights_only`, and those classes stand for objects without methods: nothing of the file is ever called.
"""

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.errors import UserError

DAMAGED = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, AttributeError)
"""What torch raises for damaged or foreign files, and for weights that do not fit."""


def read_checkpoint(path: Path, what: str, stand_ins: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint file.

    Args:
        path: of the file.
        what: the model it should be of, for the error.
        stand_ins: full names of foreign classes, read as plain records.

    Raises:
        UserError: it is absent, or cannot be read as tensors and records.
    """
    reconstruct = np.array([]).__reduce__()[0]
    known: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))]
    known += [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    known += [argparse.Namespace, *((argparse.Namespace, name) for name in stand_ins)]
    try:
        with torch.serialization.safe_globals(known):
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"There is no {path}. Download {what}'s checkpoint (docs/adding-an-encoder.md), or set weights: scratch."
        ) from error
    except (*DAMAGED, pickle.UnpicklingError) as error:
        raise foreign(path, what, error) from error
    return content


def foreign(path: Path, what: str, error: Exception) -> UserError:
    """Return the error that a file is not what it should be."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is no checkpoint of {what}: {reason}.")
