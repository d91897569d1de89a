"""Write what a folder holds more than once: tables, and pages to look at.

duplicates.csv      a row for each file of a group: keep, remove or look
duplicates.html     the first hundred groups; duplicates_2.html the next
same_items.csv      pairs of other pictures of the same item, if there is a threshold
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from areir.errors import counted
from areir.files import atomic_folder, cut_name, write_table, write_text
from areir.hardware import available_cores
from areir.matching.duplicates import KINDS, read_header
from areir.output.report import render, thumbnail

TABLE = 'duplicates.csv'
COLUMNS = (
    *('group', 'kind', 'action', 'score', 'path', 'class'),
    *('width', 'height', 'bytes'),
)
GROUPS = 100  # on a page
SHOWN = 24  # files of a group on a page


def duplicates_table(groups, collection):
    """Return a table of a folder's Groups, a row for each file, that to keep first.

    kind: of the file, beside the one to keep, and of the group there. Recoloured and
    mirrored pictures may be of another product: they are not to be removed unseen.
    """
    rows = []
    for number, group in enumerate(groups, 1):
        others = sorted(
            group.others.items(),
            key=lambda item: (KINDS.index(item[1].kind), -item[1].score, item[0]),
        )
        for index, (score, kind) in [(group.keep, (1.0, group.kind())), *others]:
            action = 'remove' if kind in KINDS[:2] else 'look'
            if index == group.keep:
                action = 'keep'
            names = collection.images[index], collection.classes[index]
            width, height, _ = read_header(collection.path_of(index))
            size = width, height, collection.sizes[index]
            rows.append((number, kind, action, score, *names, *size))
    return pd.DataFrame(rows, columns=COLUMNS)


def same_items_table(pairs, collection):
    """Return a table of {(index, index): score}, the highest score first."""
    names = list(zip(collection.images, collection.classes))
    rows = [
        (score, *names[one], *names[other]) for (one, other), score in pairs.items()
    ]
    columns = ['score', 'path', 'class', 'other_path', 'other_class']
    order = ['score', 'path', 'other_path']
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(order, ascending=[False, True, True])


def write_duplicates(groups, pairs, collection, results_root):
    """Write and print all that was found; return the path of the table of Groups.

    pairs: {(index, index): score} of the same item.
    """
    name = cut_name(os.path.basename(os.path.abspath(collection.folder)))
    target = os.path.join(results_root, f'{name}_duplicates')
    table = duplicates_table(groups, collection)
    summary = summarise(table, pairs, collection)
    with atomic_folder(target, page_name(1)) as folder:
        for page, html in enumerate(draw_pages(table, collection, summary), 1):
            write_text(os.path.join(folder, page_name(page)), html)
        if collection.calibration:
            path = os.path.join(folder, 'same_items.csv')
            write_table(path, same_items_table(pairs, collection))
        write_table(os.path.join(folder, TABLE), table)
    print(summary)
    print(f'wrote {os.path.join(target, page_name(1))}')
    return os.path.join(target, TABLE)


def page_name(page):
    return 'duplicates.html' if page == 1 else f'duplicates_{page}.html'


def summarise(table, pairs, collection):
    """Return how many groups and files of each kind there are, as one line."""
    kept = table[table['action'] == 'keep']
    removed = table[table['action'] == 'remove']
    counts = []
    for kind in KINDS:
        groups = kept.loc[kept['kind'] == kind, 'group']
        if kind in KINDS[2:] and not len(groups):
            continue
        files = table['group'].isin(groups).sum()
        counts.append(
            f'{kind}: {counted(len(groups), "group")}, {counted(files, "file")}'
        )
    if collection.calibration:
        counts.append(f'same item: {counted(len(pairs), "pair")}')
    counts.append(
        f'{len(removed):,} of {counted(len(collection), "image")} could go, '
        f'{removed["bytes"].sum() / 1e6:,.1f} MB'
    )
    return '; '.join(counts)


def draw_pages(table, collection, summary):
    """Yield the HTML of each page, GROUPS groups to a page, and at least one."""
    folder = os.path.abspath(collection.folder)
    pages = max(1, -(-table['group'].nunique() // GROUPS))
    for page in range(1, pages + 1):
        rows = table[(table['group'] - 1) // GROUPS == page - 1]
        groups = []
        for number, group in rows.groupby('group'):
            files = group.head(SHOWN).to_dict('records')
            groups.append((number, files, len(group) - len(files)))
        shown = [file for _, files, _ in groups for file in files]
        paths = [os.path.join(folder, file['path']) for file in shown]
        with ThreadPoolExecutor(available_cores()) as pool:
            for file, path, picture in zip(shown, paths, pool.map(thumbnail, paths)):
                file |= {'picture': picture, 'address': Path(path).as_uri()}
        values = {
            'folder': collection.folder,
            'summary': summary,
            'groups': groups,
            'page': page,
            'pages': [(page_name(number), number) for number in range(1, pages + 1)],
            'with_same_items': bool(collection.calibration),
        }
        yield render(values, 'duplicates.html.jinja')
