"""What the page of a run shows of its CSV and run.json, if they are there."""

import os
import shlex
from dataclasses import dataclass
from typing import Any

from areir.errors import UserError
from areir.output import charts
from areir.output.curves import curve_panels
from areir.training.finished import read_results, read_run_json


@dataclass
class Curves:
    """The curves of a run: charts, and a table of their numbers."""

    problem: str | None = None  # why there are none
    charts: list = ()
    columns: list = ()  # of (title, is_share)
    rows: list = ()  # of (epoch, values), NaN where there is none
    kept: Any = None  # the epoch that the database holds
    is_last: bool = True


def read_curves(path, kept, checksum=None):
    """Return the Curves of a run's CSV.

    kept: the epoch of its database; checksum: of the file, as run.json records it.
    """
    table, problem = read_results(path, checksum)
    if problem:
        return Curves(f'{os.path.basename(path)} {problem}')
    panels = curve_panels(table)
    drawn = [
        charts.curve_chart(f'curve-{place}', panel, table, kept)
        for place, panel in enumerate(panels)
    ]
    columns, names = [], []
    for panel in panels:
        for label, column in panel.columns.items():
            columns.append((label or panel.title, panel.is_share))
            names.append(column)
    values = table[names].to_numpy().tolist()
    rows = list(zip(table['epoch'].tolist(), values))
    return Curves(None, drawn, columns, rows, kept, not kept < table['epoch'].max())


@dataclass
class Provenance:
    """Where a run comes from, as its run.json records it.

    Values are of any kind, None if they are not recorded; the page shows them as
    `readable` says.
    """

    problem: str | None = None  # why run.json cannot be read
    command: list | None = None  # words, quoted for a shell
    counts: Any = None
    split_hash: Any = None
    commit: Any = None
    versions: Any = None
    device: Any = None
    precision: Any = None
    warnings: Any = None
    arguments: dict | None = None
    csv_checksum: Any = None


def read_provenance(path):
    """Return the Provenance of a run.json. Parts of the wrong kind are left out."""
    run, problem = read_run(path)
    data, arguments, words = run.get('data'), run.get('arguments'), run.get('command')
    if not isinstance(data, dict):
        data = {}
    command = None
    if isinstance(words, list):
        command = ['python', *(shlex.quote(str(word)) for word in words)]
    return Provenance(
        problem=problem,
        command=command,
        counts=describe_counts(data.get('counts')),
        split_hash=data.get('split_sha256'),
        commit=run.get('commit'),
        versions=run.get('versions'),
        device=run.get('device'),
        precision=run.get('precision'),
        warnings=data.get('warnings'),
        arguments=arguments if isinstance(arguments, dict) else None,
        csv_checksum=run.get('csv_checksum'),
    )


def read_run(path):
    """Return (the dict of a run.json, None), or ({}, why it cannot be read)."""
    try:
        return read_run_json(path), None
    except (UserError, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = 'missing' if missing else 'damaged'
        return {}, f'{os.path.basename(path)} is {reason}'


def describe_counts(counts):
    """Write {part: (images, classes)} as text; return anything else as it is."""
    try:
        texts = [
            f'{part}: {images:,} images of {classes:,} classes'
            for part, (images, classes) in counts.items()
        ]
    except (AttributeError, TypeError, ValueError):
        return counts
    return '; '.join(texts)


def readable(value):
    """Write a value of JSON as text: 'a 1, b yes' for {'a': 1, 'b': True}."""
    if value is None:
        return 'not recorded'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, float):
        return f'{value:g}'
    if isinstance(value, dict):
        texts = [f'{key} {readable(part)}' for key, part in value.items()]
        return ', '.join(texts) or 'none'
    if isinstance(value, list):
        return ', '.join(map(readable, value)) or 'none'
    return str(value)
