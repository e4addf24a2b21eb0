"""Align a language model to a reward model with BRAIn (arXiv 2402.02479).

`import llm` is instant; the heavy libraries load when `run` or `AlignConfig` is first used.
An unrelated package on PyPI is also called `llm`; the two cannot be installed side by side.
"""

from __future__ import annotations

import logging
from typing import Any

# On machines without a GPU its import warns of a kernel that it does without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = ["AlignConfig", "UserError", "run"]

_HOMES = {"AlignConfig": "llm.config", "UserError": "llm.errors", "run": "llm.align"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
