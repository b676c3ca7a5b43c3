"""A query's rows out of SQLite or PostgreSQL as a frame."""

from __future__ import annotations

from tagsmith.data.cells import frame_of
from tagsmith.data.database_rows import database_rows
from tagsmith.data.files import Raw, listed


def read_database(url: str, query: str | None = None) -> Raw:
    """The rows that `query` gives, or those of the only table where there is just one; DataError as `database_rows`."""
    with database_rows(url, query) as found:
        frame, _ = frame_of(found.names, found.rows)
    asked = " ".join(found.query.split())
    return Raw(frame, f"read from {found.kind} by {asked!r} with the columns {listed(found.names)}")
