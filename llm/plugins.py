"""A user's own functions, named on the command line as package.module:function."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from llm.errors import UserError


def load_callable(spec: str, *, option: str) -> Callable[..., Any]:
    """Import a function that a user named.

    The current directory is put on the import path.

    Args:
        spec: `package.module:function`; a dotted name after the colon is looked up attribute by attribute.
        option: the option that it was given to, for messages.

    Returns:
        the function, or any other callable of that name.

    Raises:
        UserError: The name has no colon, the module does not exist or fails to import, or it has no such callable.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"{option} {spec}: expected package.module:function, such as my_rewards:brevity.")
    found: Any = _import_module(module_name, spec, option)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UserError(f"{option} {spec}: {module_name} has no {attribute!r}. Check the name after the colon.")
        found = getattr(found, name)
    if not callable(found):
        raise UserError(f"{option} {spec}: {attribute} is of type {type(found).__name__}, which cannot be called.")
    return found


def _import_module(name: str, spec: str, option: str) -> Any:
    """Import a module, telling a missing module from one that fails while it is imported."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's module does at its top
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, name):
            raise UserError(
                f"{option} {spec}: there is no module {error.name!r}, neither in {os.getcwd()} nor among the installed "
                "packages. Check the name before the colon, or run from the folder that holds it."
            ) from error
        raise UserError(
            f"{option} {spec}: importing {name} failed with {type(error).__name__}: {error}. Mend that module."
        ) from error


def _is_part(missing: str | None, name: str) -> bool:
    """Whether the missing module is the named one or a package around it."""
    return missing is not None and (name == missing or name.startswith(f"{missing}."))
