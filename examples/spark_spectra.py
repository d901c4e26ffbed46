"""A Spark job that turns recordings into a Hive table of spectra. It sees directories, and knows of no cache.

    python examples/spark_spectra.py RECORDINGS SPECTRA SCRATCH

``spark_to_torch.py`` runs it on a mount. About writing nothing is said but that partitions are overwritten one by one:
the committer is the one that renames what tasks wrote, and each file has its checksum beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

COLUMNS = "recording string, spectrum array<float>, edition int, tone int"


def session(scratch: Path) -> SparkSession:
    """Two threads of this machine, and Hive's catalogue of tables in a directory."""
    return (
        SparkSession.builder.master("local[2]")
        .appName("spectra")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.sources.partitionOverwriteMode", "dynamic")
        .config("spark.sql.warehouse.dir", str(scratch / "warehouse"))
        .config("spark.driver.extraJavaOptions", f"-Dderby.system.home={scratch}")
        .config("spark.hadoop.javax.jdo.option.ConnectionURL", "jdbc:derby:;databaseName=metastore;create=true")
        .enableHiveSupport()
        .getOrCreate()
    )


def spectra(edition: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """From the bytes of recordings to spectra; the directory of a recording says its tone."""
    for batch in batches:
        samples = np.stack([np.frombuffer(data.as_py(), np.float32) for data in batch["content"]])
        paths = [Path(path) for path in batch["path"].to_pylist()]
        columns = {
            "recording": pa.array([path.name for path in paths]),
            "spectrum": pa.array(list(np.abs(np.fft.rfft(samples)).astype(np.float32))),
            "edition": pa.array([edition] * len(paths), pa.int32()),
            "tone": pa.array([int(path.parent.name.removeprefix("tone")) for path in paths], pa.int32()),
        }
        yield pa.RecordBatch.from_pydict(columns)


def write(spark: SparkSession, recordings: Path, edition: int, to: Path) -> None:
    """Write the partitions of the tones that are found among the recordings, in place of what stands there of them."""
    found = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(recordings)).coalesce(2)
    made = found.select("path", "content").mapInArrow(partial(spectra, edition), COLUMNS)
    made.write.mode("overwrite").partitionBy("tone").parquet(str(to))


def main() -> None:
    """Write all, write one partition anew, and read both through Hive's table and from the files."""
    source, to, scratch = (Path(word) for word in sys.argv[1:])
    spark = session(scratch)
    write(spark, source, 1, to)
    write(spark, source / "tone2", 2, to)

    spark.sql(
        "CREATE EXTERNAL TABLE spectra (recording STRING, spectrum ARRAY<FLOAT>, edition INT) PARTITIONED BY (tone INT)"
        f" STORED AS PARQUET LOCATION '{to}'"
    )
    spark.sql("MSCK REPAIR TABLE spectra")
    for what, name in {"table": "spectra", "files": f"parquet.`{to}`"}.items():
        counted = spark.sql(f"SELECT tone, edition, count(*) FROM {name} GROUP BY tone, edition ORDER BY tone")
        print(
            f"{what}:", *(f"{count} of tone {tone} (edition {edition})" for tone, edition, count in counted.collect())
        )
    spark.stop()


if __name__ == "__main__":
    main()
