"""Stage 1 on a run: sources become a table, and the table splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tagsmith.assets import dataset_file
from tagsmith.catalogue import ASSETS
from tagsmith.config import Config
from tagsmith.data.column_cleaning import clean_table
from tagsmith.data.labelling import SIMILAR
from tagsmith.data.preparing import Prepared, prepare, prepare_given
from tagsmith.data.readers import is_url, read_as, redacted
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event
from tagsmith.naming import Source
from tagsmith.run import Run


def prepare_sources(source: Source, validation: Source | None, test: Source | None, run: Run) -> Prepared:
    """The splits of `source`, or of the sources that are given for them, with corrections where the run names some."""
    require_use_of_query(run.config, source, validation, test)
    if run.config.data.earlier is not None:
        from tagsmith.deployment.manifest import verify

        verify(Path(run.config.data.earlier))
    train_table = read_source(source, run, divided=True, sliced=test is None)
    validation_table = None if validation is None else read_source(validation, run)
    test_table = None if test is None else read_source(test, run, sliced=True)
    if validation_table is None and test_table is None:
        prepared = prepare(
            train_table, run.config.data, seed=run.config.seed, listen=run.listen, sketched=run.hands.sketched
        )
    else:
        prepared = prepare_given(
            train_table,
            validation_table,
            test_table,
            run.config.data,
            seed=run.config.seed,
            listen=run.listen,
            sketched=run.hands.sketched,
        )
    return prepared if run.config.data.corrections is None else _corrected(prepared, run)


def _corrected(prepared: Prepared, run: Run) -> Prepared:
    from tagsmith.data.corrections import learn_corrections, read_corrections

    config = run.config.data
    corrections = clean_table(read_corrections(str(config.corrections)), config.clean)
    prepared = learn_corrections(prepared, corrections, near=config.near_duplicates)
    run.note(f"{prepared.history[-1].reason}.")
    return prepared


def check_rows(prepared: Prepared, run: Run) -> None:
    """The check of the rows that are used, for the report; what could mislead is said at once."""
    from tagsmith.data.checking import check as look
    from tagsmith.data.duplicates import Grouped

    frames = [part.frame.select("row", "text", "label", "group") for _, part in prepared.splits.items()]
    frame = pl.concat(frames).unique(["row", "text"], keep="first", maintain_order=True)  # oversampled rows count once
    counts: Mapping[str, Any] = prepared.duplicates
    grouped = Grouped(table=Table(frame, prepared.history), **counts)
    found = look(grouped, run.config.data, test_rows=len(prepared.splits.test))
    run.facts["check"] = found.compact()
    for finding in found.findings:
        if finding.severity == "warning":
            run.listen(Event("data", "note", values={"text": f"{finding.text} {finding.advice}"}))


def read_labelled_or_not(source: Source, run: Run) -> tuple[Table, str]:
    """The rows of a source, and why no labels were found; the rows have none then."""
    try:
        return read_source(source, run), ""
    except DataError as error:
        if isinstance(source, Table) or run.config.data.label is not None:
            raise
        try:
            return read_source(source, run, labelled=False), str(error)
        except DataError:
            raise error from None


def read_source(
    source: Source, run: Run, *, labelled: bool = True, divided: bool = False, sliced: bool = False
) -> Table:
    """The rows of a source, cleaned; `divided` and `sliced` ones with the columns that say how."""
    table = _read_as_it_is(source, run, labelled=labelled, divided=divided, sliced=sliced)
    table = clean_table(table, run.config.data.clean, clean=run.hands.clean)
    if not len(table):
        steps = ", ".join(run.config.data.clean)
        raise DataError(f"Cleaning ({steps}) leaves no text in any row. Expected some; take fewer steps in data.clean.")
    return table


def require_use_of_query(config: Config, *sources: Source | None) -> None:
    """SettingError where a query is set, and nothing that could be asked is among `sources`."""
    if config.data.query is not None and not any(isinstance(source, str) and is_url(source) for source in sources):
        raise SettingError(
            "data.query is set, and no source is a database. Expected sqlite:///PATH or postgresql://...; leave the "
            "query out."
        )


def _read_as_it_is(source: Source, run: Run, *, labelled: bool, divided: bool, sliced: bool) -> Table:
    if isinstance(source, Table):
        return source
    slices = run.config.evaluation.slices if sliced else ()
    table = read_as(
        _path(source, run),
        run.config.data,
        labelled=labelled,
        divided=divided,
        slices=slices,
        read_files=run.hands.read_files,
    )
    run.listen(Event("data", "read", values={"source": redacted(source), "rows": len(table)}))
    for change in table.history:
        if change.step == SIMILAR:
            run.note(f"{redacted(source)}: {change.reason}")
    return table


def _path(source: str | Path, run: Run) -> str | Path:
    """The file behind a named data set; any other source as it is."""
    asset = ASSETS.get(str(source))
    if asset is None or asset.kind != "dataset" or Path(source).exists():
        return source
    located = dataset_file(asset.name, listen=run.listen)
    if located.note:
        run.note(f"{asset.name}: {located.note}.")
    return located.path
