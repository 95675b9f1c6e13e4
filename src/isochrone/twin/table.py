"""Reads a table that somebody brought (CSV): rows by their columns."""

import csv

from isochrone.core.table_lines import lines_of


def table_of(text: str) -> "csv.DictReader[str]":
    """Its columns stand in the first line that is not blank."""
    reader = csv.DictReader(lines_of(text))
    while reader.fieldnames is not None and not any(map(str.strip, reader.fieldnames)):
        reader.fieldnames = next(reader.reader, None)
    return reader
