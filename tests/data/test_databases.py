import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tagsmith.config import Config
from tagsmith.data.readers import read, read_frame, redacted
from tagsmith.errors import DataError
from tagsmith.naming import default_out, reproduce
from tagsmith.pipeline import train

ROWS = [("one", 1, "a"), ("two", 2, "b"), ("three", 3, "a")]


def refused(*arguments, **options):
    with pytest.raises(DataError) as caught:
        read(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:pass@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@ss/w@host:5432/db", "postgresql://me:***@host:5432/db"),
        (
            "postgresql://host/db?user=me&password=pass&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:///rows.db", "sqlite:///rows.db"),
        ("rows:with@odd.csv", "rows:with@odd.csv"),
    ],
)
def test_an_address_is_shown_without_its_password(address, shown):
    assert redacted(address) == shown


def test_a_password_is_not_in_the_command_that_repeats_a_run_nor_in_the_name_of_the_bundle():
    address = "postgresql://me:s3cret@host/reviews"
    command = reproduce(address, test=address, config=Config.of({"data": {"query": "SELECT 1"}}))
    assert "s3cret" not in command
    assert "--set 'data.query=SELECT 1'" in command
    assert str(default_out(address)) == "reviews-tagsmith"


def test_a_query_without_a_database_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,a\n")
    assert "is no database" in refused(tmp_path / "a.csv", query="SELECT 1")


# --- SQLite ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path):
    connection = sqlite3.connect(tmp_path / "rows.db")
    connection.execute('CREATE TABLE "the rows" (text, number, label)')
    connection.executemany(
        'INSERT INTO "the rows" VALUES (?, ?, ?)', [*ROWS, (None, 2.5, None), (b"by\xc3\xbctes", None, 7)]
    )
    connection.commit()
    connection.close()
    return f"sqlite:///{tmp_path}/rows.db"


def test_a_lone_table_needs_no_query(sqlite):
    table = read(sqlite, text="text", label="label")
    assert table.texts == ["one", "two", "three", "byütes"]
    assert table.labels == ["a", "b", "a", "7"]
    assert "read from SQLite by 'SELECT * FROM \"the rows\"'" in table.history[0].reason
    assert read_frame(sqlite).frame["number"].to_list() == ["1", "2", "3", "2.5", None]


def test_a_query_chooses_rows(sqlite):
    query = 'SELECT text, label FROM "the rows" WHERE number < 3 AND text IS NOT NULL ORDER BY number DESC'
    assert read(sqlite, query=query).texts == ["two", "one"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT text FROM nowhere", "no such table"),
        ("SELEC 1", "syntax error"),
        ("DELETE FROM 'the rows'", "readonly"),
        ("PRAGMA user_version = 3", "readonly"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT text, text FROM 'the rows'", "Give each its own name"),
        ("SELECT text, label FROM 'the rows' WHERE 0", "no rows"),
        ("SELECT x'ff' AS text, 1 AS label", "could not be read"),
    ],
)
def test_a_query_that_gives_no_table_is_refused(sqlite, query, said):
    assert said in refused(sqlite, query=query)
    assert len(read_frame(sqlite).frame) == 5


def test_an_absolute_path_with_three_slashes_is_explained(sqlite):
    assert "with four slashes" in refused(sqlite.replace("sqlite:////", "sqlite:///"))


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    assert "No file at" in refused(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def _binaries():
    """The folder of `initdb` and `postgres`: Debian keeps them off the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    return next((folder for folder in folders if (folder / "initdb").exists()), Path(found).parent if found else None)


def _as_nobody(command):
    """`initdb` refuses to be run by root."""
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="module")
def postgres():
    """The address of a server of our own, with the password `s3cret` and a table."""
    psycopg = pytest.importorskip("psycopg", reason="needs the extra tagsmith[postgres]")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's initdb (Debian's package postgresql); it is not here")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("initdb refuses root, and there is no setpriv to become another user")
    # Beside pytest's own folders: those are closed to other users.
    with tempfile.TemporaryDirectory(prefix="tagsmith-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)
        yield from _serve(psycopg, binaries, Path(folder))


def _serve(psycopg, binaries, folder):
    (folder / "password").write_text("s3cret")
    (folder / "password").chmod(0o644)
    make = [
        binaries / "initdb",
        "-D",
        folder / "data",
        "-U",
        "me",
        f"--pwfile={folder / 'password'}",
        "-A",
        "scram-sha-256",
    ]
    subprocess.run(_as_nobody([*map(str, make), "--no-sync"]), check=True, capture_output=True, cwd=folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-D", folder / "data", "-p", port, "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            _as_nobody([*map(str, [binaries / "postgres", *options])]), stdout=log, stderr=log, cwd=folder
        )
    try:
        address = f"postgresql://me:s3cret@127.0.0.1:{port}/postgres"
        with _connected(psycopg, address, server, folder / "log") as connection:
            connection.execute(
                "CREATE TABLE reviews (text text, number numeric, label text, tags text[], at timestamp)"
            )
            for text, number, label in ROWS:
                connection.execute(
                    "INSERT INTO reviews VALUES (%s, %s, %s, %s, %s)",
                    (text, number, label, ["x", "y"][: number - 1], "2024-01-02"),
                )
            connection.execute("CREATE SCHEMA other")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _connected(psycopg, address, server, log):
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(address, connect_timeout=5)
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def test_postgresql_gives_the_rows_of_its_lone_table(postgres):
    table = read(postgres, text="text", label="label")
    assert sorted(zip(table.texts, table.labels, strict=True)) == [("one", "a"), ("three", "a"), ("two", "b")]
    assert "s3cret" not in str(table.history)
    frame = read_frame(postgres).frame.sort("number")
    assert frame["number"].to_list() == ["1", "2", "3"]
    assert frame["tags"].to_list() == [[], ["x"], ["x", "y"]]
    assert frame["at"].to_list() == ["2024-01-02 00:00:00"] * 3


def test_postgresql_answers_a_query(postgres):
    query = "SELECT text, tags AS label FROM reviews ORDER BY number;"
    assert read(postgres, query=query).label_sets == [[], ["x"], ["x", "y"]]


def test_postgresql_streams_many_rows(postgres):
    query = "SELECT 'text ' || n AS text, n % 2 AS label FROM generate_series(1, 50000) n"
    assert len(read(postgres, query=query)) == 50_000


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT nothing FROM here", 'relation "here" does not exist'),
        ("DELETE FROM reviews", "syntax error"),
        ("SELECT 1; DROP TABLE reviews", "could not be read"),
        ("SELECT set_config('x.y', text, false), nextval('s') FROM reviews", "could not be read"),
        ("SELECT text, label FROM reviews WHERE false", "no rows"),
    ],
)
def test_postgresql_is_only_ever_read(postgres, query, said):
    assert said in refused(postgres, query=query)
    assert len(read_frame(postgres).frame) == 3


def test_a_wrong_password_is_refused_and_not_repeated(postgres):
    message = refused(postgres.replace("s3cret", "wr0ng"))
    assert "password authentication failed" in message
    assert "wr0ng" not in message


def test_a_server_that_does_not_answer_is_one_paragraph():
    assert "could not be read" in refused("postgresql://me:s3cret@127.0.0.1:1/rows")


def test_two_tables_are_listed(postgres):
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE other.more (text text)")
    try:
        assert "has 2 tables ('other.more', 'public.reviews')" in refused(postgres)
    finally:
        with psycopg.connect(postgres) as connection:
            connection.execute("DROP TABLE other.more")


def test_a_bundle_trained_from_a_database_holds_no_password(postgres, toy_rows, quick_config, tmp_path, heard):
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE other.toys (text text, label text)")
        cursor.executemany("INSERT INTO other.toys VALUES (%s, %s)", toy_rows)
    config = quick_config(data={"query": "SELECT * FROM other.toys"}, tuning={"epochs": 1})
    try:
        folder = train(postgres, out=tmp_path / "bundle", config=config, listen=heard.append).folder
    finally:
        with psycopg.connect(postgres) as connection:
            connection.execute("DROP TABLE other.toys")
    assert [path for path in folder.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()] == []
    assert "s3cret" not in str(heard)
    assert "postgresql://me:***@127.0.0.1" in (folder / "report.json").read_text(encoding="utf-8")
