"""Run docs/tour.ipynb in a folder of its own, and write its outputs in place.

python docs/make_tour.py
"""

import os
import tempfile

import nbformat
from nbclient import NotebookClient

DOCS = os.path.dirname(os.path.abspath(__file__))
TOUR = os.path.join(DOCS, 'tour.ipynb')


def run_tour(folder):
    """Return the notebook with the outputs that its cells have in a folder.

    Raises CellExecutionError if a cell fails.
    """
    notebook = nbformat.read(TOUR, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name='python3',
        resources={'metadata': {'path': folder}},
        coalesce_streams=True,
        record_timing=False,
    )
    return client.execute()


if __name__ == '__main__':
    # areir need not be installed
    paths = [os.path.dirname(DOCS), os.environ.get('PYTHONPATH')]
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run_tour(folder), TOUR)
