"""The types that the signatures of this package use."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

Array: TypeAlias = Any
"""An array of any library that follows the Python array API standard; the standard has no static type yet."""

Namespace: TypeAlias = Any
"""The functions of an array library, as `array_api_compat.array_namespace` returns them."""

OnEmpty: TypeAlias = Literal["raise", "skip"]
"""What to do with a group whose every target weight is zero."""
