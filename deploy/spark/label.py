"""Label a column of a Spark table with a Tagsmith bundle: spark-submit label.py BUNDLE IN.parquet OUT.parquet [COLUMN].

Every worker needs Tagsmith and the bundle's folder (shared storage, or `--archives`). A bundle is loaded once for each
partition, and answers batch by batch; a text without an answer gets no label and the reason why.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd

SCHEMA = "label string, probability double, truncated boolean, reason string"


def labelled(texts: pd.Series, *, bundle: Any) -> pd.DataFrame:
    """The answers of a loaded bundle to one batch of texts, a row each."""
    found = bundle.answer(["" if pd.isna(text) else str(text) for text in texts])
    rows = [
        {
            "label": None if each.reason else ", ".join(each.labels),
            "probability": None if each.reason or not each.probabilities else float(max(each.probabilities)),
            "truncated": bool(each.truncated),
            "reason": each.reason or None,
        }
        for each in found
    ]
    return pd.DataFrame(rows, columns=["label", "probability", "truncated", "reason"])


def labelling(folder: str) -> Any:
    """A column function for Spark: texts in, a struct of `SCHEMA` out."""
    from pyspark.sql.functions import pandas_udf

    @pandas_udf(SCHEMA)
    def label(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        from tagsmith.deployment.bundle import load

        bundle = load(folder, engine="reference")  # the same answers on every machine
        for texts in batches:
            yield labelled(texts, bundle=bundle)

    return label


def main(bundle: str, source: str, out: str, column: str = "text") -> None:
    """Read a table, label it, write it."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("tagsmith").getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1024")
    rows = spark.read.parquet(source)
    rows.withColumn("tagsmith", labelling(bundle)(rows[column])).select("*", "tagsmith.*").drop(
        "tagsmith"
    ).write.parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
