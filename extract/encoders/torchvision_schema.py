"""Make torchvision importable beside a CPU build of torch.

timm and transformers import torchvision. Where no wheel of it matches the installed torch (CPU-only torch, whose
index has none), its compiled operators do not load, and `import torchvision` fails because it registers fakes for
operators that do not exist. Declaring those two operator schemas, only when they are absent, lets the import work;
nothing here calls them. Import this module before timm or transformers. A matching torchvision is left alone.
"""

import importlib
import importlib.util

import torch

_KEPT: list[torch.library.Library] = []  # a library that is garbage collected takes its operators with it


def declare_missing_operators() -> None:
    """Declare torchvision's `nms` schemas unless the real operators load."""
    if importlib.util.find_spec("torchvision") is None or _KEPT:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


declare_missing_operators()
