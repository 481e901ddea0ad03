"""The version, where everything may import it from without importing everything."""

from __future__ import annotations

__version__ = "0.1.0"
