"""The table of all runs below a folder: what each is, and what it reaches."""

import argparse
import os
import pathlib

from areir.cli.recipes import default_values
from areir.cli.training import get_parser
from areir.errors import UserError, counted
from areir.training.run import read_run_json

FIGURES = 'recall@1', 'all_recall@1_trained', 'all_recall@1_new'
# flags that are shown if they were given, beside those of the recipe
SHOWN = 'with_se', 'weights', 'extend', 'seed', 'precision', 'select'
NOT_SHOWN = 'test_every', 'whole_gallery'  # they change no weights


def read_runs(folder):
    """Return the runs below a folder as rows, by dataset, then the best first.

    A row is a dict; what is unknown is None. name: with which the files of the run
    begin, relative to the folder; FIGURES, each with _low and _high: fractions, and the
    bounds of their 95 % intervals; train_seconds, seconds: of training, and with tests;
    note: why figures are not final, or not comparable. What is called like a run.json
    but is none is noticed. Raises UserError if there is no run.
    """
    rows = []
    for path in pathlib.Path(folder).rglob('*_run.json'):
        name = str(path.relative_to(folder)).removesuffix('_run.json')
        try:
            rows.append({'name': name, **describe_run(str(path))})
        except (UserError, OSError) as error:
            print(f'notice: {error}')
        except (LookupError, TypeError, ValueError, AttributeError):
            print(f'notice: {path} is of another version of train.py')
    if not rows:
        raise UserError(f'{folder}: no run of train.py below it (<run>_run.json)')
    best = FIGURES[0]
    return sorted(rows, key=lambda row: (row['data'], -(row[best] or 0), row['name']))


def describe_run(path):
    """Return the row of `read_runs` for a run.json, without its name."""
    run = read_run_json(path)
    flags, data = run['arguments'], run['data']
    images, classes = data['counts']['train']
    row = {
        'data': flags['data_name'] + ' (cropped)' * (flags['crop_type'] == 'cropped'),
        'network': flags['model_type'],
        'recipe': describe_recipe(flags, images, classes - len(data['held_out'])),
    }
    for name in FIGURES:
        low, high = run['intervals'].get(name, (None, None))
        row |= {
            name: run['metrics'].get(name),
            f'{name}_low': low,
            f'{name}_high': high,
        }
    others = ('train_seconds', 'seconds', 'date', 'commit')
    row |= {name: run.get(name) for name in others}
    notes = {
        'unfinished': not run.get('finished'),
        'not comparable: protocol published': run['protocol'] != 'strict',
        'not comparable: epoch selected by test': run['select'] == 'test',
        'trained on all classes': data['counts'].keys() == {'train'},
    }
    note = '; '.join(note for note in notes if notes[note])
    return {**row, 'note': note}


def describe_recipe(flags, images, classes):
    """Return the name of a recipe, and which of a run's flags differ from it.

    images, classes: how many were trained on.
    """
    usual = vars(get_parser().parse_args([])) | {'select': 'last'}
    args = argparse.Namespace(**usual | flags)
    changes = []
    for transformer in (False, True):  # the nearer: timm, which knows, takes seconds
        sizes = images, classes, args.weights == 'none', transformer
        values = {name: usual[name] for name in SHOWN} | default_values(args, *sizes)
        changed = [name for name in values if getattr(args, name) != values[name]]
        changes.append([name for name in changed if name not in NOT_SHOWN])
    texts = [
        f'{name} {os.path.basename(str(getattr(args, name)))}'
        for name in min(changes, key=len)
    ]
    epochs = counted(args.num_epochs, 'epoch')
    return ', '.join([args.recipe, *texts, f'{args.image_size} px', epochs])
