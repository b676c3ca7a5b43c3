"""A query's rows out of SQLite or PostgreSQL, one after the other, read only; a password never leaves this file."""

from __future__ import annotations

import re
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tagsmith.data.files import first_line, listed
from tagsmith.data.sources import file_at
from tagsmith.errors import DataError

_ROWS_AT_ONCE = 20_000
_PATIENCE_S = 10


def is_url(source: str | Path) -> bool:
    """Whether a source is an address such as `sqlite:///rows.db`, not a path."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", source) is not None


def redacted(source: str | Path) -> str:
    """The source as it may be shown and kept: an address without its password."""
    if not is_url(source):
        return str(source)
    # Up to the last @: a password that was not percent-encoded may hold one too.
    shown = re.sub(r"(://[^:@/]*):.*@", r"\1:***@", str(source))
    return re.sub(r"((?:ssl)?password=)[^&]*", r"\1***", shown)


@dataclass(frozen=True)
class Rows:
    """What a database was asked, the names of its columns, and its rows, once."""

    kind: str
    query: str
    names: list[str]
    rows: Iterator[Sequence[object]]


@contextmanager
def database_rows(url: str, query: str | None = None) -> Iterator[Rows]:
    """The rows that `query` gives, or those of the only table where there is just one.

    `sqlite:///rows.db` is a path from here, `sqlite:////data/rows.db` one from the root. DataError, without the
    password, for whatever the database says no to.
    """
    known = {"sqlite": _sqlite_rows, "postgresql": _postgres_rows, "postgres": _postgres_rows}
    opened = known.get(url.partition("://")[0].lower())
    if opened is None:
        raise DataError(
            f"'{redacted(url)}' cannot be read. Expected an address that starts with sqlite:/// or postgresql://, a "
            "path or hf:NAME; fetch the table and give the file."
        )
    with opened(url, query) as rows:
        yield rows


# --- SQLite ---------------------------------------------------------------------------------------------------------


@contextmanager
def _sqlite_rows(url: str, query: str | None) -> Iterator[Rows]:
    path = Path(urllib.parse.unquote(url.partition("://")[2].removeprefix("/")))
    if not path.name:
        raise DataError("'sqlite://' names no file. Expected sqlite:///PATH, as in sqlite:///rows.db; add the path.")
    if not path.exists() and (root := Path("/") / path).exists():
        raise DataError(f"No file at '{path}'. For '{root}' write sqlite:///{root}, with four slashes.")
    file_at(path)
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            query = query or _only_table([name for (name,) in connection.execute(_SQLITE_TABLES)], url)
            cursor = connection.execute(query)
            yield _named(cursor.description, _batches(cursor), kind="SQLite", query=query)
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
        _refuse(url, first_line(error))


_SQLITE_TABLES = (
    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY 1"
)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


@contextmanager
def _postgres_rows(url: str, query: str | None) -> Iterator[Rows]:
    try:
        import psycopg
    except ImportError:
        raise DataError(
            "Reading from PostgreSQL needs the package psycopg, which is not installed. Install it with "
            "pip install 'tagsmith[postgres]'."
        ) from None
    options = _options(url, psycopg)
    try:
        with psycopg.connect(**options) as connection:
            connection.read_only = True
            if query is None:
                with connection.cursor() as cursor:
                    tables = cursor.execute(_POSTGRES_TABLES).fetchall()
                query = _only_table([".".join(names) for names in tables], url, parts=tables)
            # A cursor with a name stays on the server, so that its rows come in portions; it takes queries only.
            with connection.cursor(name="tagsmith") as cursor:
                cursor.execute(query.rstrip().rstrip(";").encode())
                yield _named(cursor.description, _batches(cursor), kind="PostgreSQL", query=query)
    except (psycopg.Error, UnicodeError) as error:
        _refuse(url, _without_secrets(first_line(error), options))


def _options(url: str, psycopg: Any) -> dict[str, Any]:
    try:
        options = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        # What the library says may repeat the password.
        _refuse(url, "the address is not valid; letters such as @, / and % of a name or password are written %40, ...")
    return {"connect_timeout": _PATIENCE_S, "application_name": "tagsmith"} | options


def _without_secrets(text: str, options: dict[str, Any]) -> str:
    for key in ("password", "sslpassword"):
        if options.get(key):
            text = text.replace(str(options[key]), "***")
    return text


_POSTGRES_TABLES = """
SELECT table_schema, table_name FROM information_schema.tables
WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""


# --- both -----------------------------------------------------------------------------------------------------------


def _only_table(names: Sequence[str], url: str, *, parts: Sequence[Sequence[str]] | None = None) -> str:
    if len(names) != 1:
        raise DataError(
            f"'{redacted(url)}' has {len(names)} tables ({listed(names)}). Expected one, or a query that says which "
            "rows: --query 'SELECT text, label FROM ...'."
            if names
            else f"'{redacted(url)}' has no table. Expected one with a text and a label in each row; check the address."
        )
    quoted = (f'"{part.replace(chr(34), chr(34) * 2)}"' for part in (parts[0] if parts else names))
    return f"SELECT * FROM {'.'.join(quoted)}"


def _batches(cursor: Any) -> Iterator[Sequence[object]]:
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        yield from rows


def _named(description: Any, rows: Iterable[Sequence[object]], *, kind: str, query: str) -> Rows:
    if description is None:
        raise DataError(f"The query gives no rows: {query[:200]!r}. Expected a SELECT; correct it.")
    names = [str(column[0]) for column in description]
    if len(set(names)) < len(names):
        raise DataError(f"The query gives the columns {listed(names)}. Give each its own name with AS.")
    return Rows(kind, query, names, ([_value(value) for value in row] for row in rows))


def _value(value: object) -> object:
    """Bytes as the text that they hold; UnicodeError where they hold none."""
    return bytes(value).decode("utf-8") if isinstance(value, bytes | bytearray | memoryview) else value


def _refuse(url: str, reason: str) -> NoReturn:
    raise DataError(
        f"'{redacted(url)}' could not be read: {reason}. Check the address, the query and that the database answers."
    ) from None
