"""The composition root: settings become adapters, adapters become roles. The only package that knows both sides.

apps.py      the jobs of decorated functions
embedded.py  SQLite, a broker in this process, a directory: what `Duly()` and `duly up` have in them
up.py        `duly up`: that, with its HTTP face, until a signal
roles.py     `duly servicer`, `duly scheduler`, `duly worker`: one role of a cluster, a process each
parts.py     the stores, broker and blobs of a cluster, from settings; broker.py, the broker among them
serving.py   listening, HTTP servers, and the signals that end a process
"""

from __future__ import annotations

from duly.boot.embedded import Node, assemble, connect, worker_settings

__all__ = ["Node", "assemble", "connect", "worker_settings"]
