"""Find images that are among the queries and in the gallery, so none finds itself.

They have one name on both sides or, if each image queries all others, one name and
vector, as programs that divide images among processes repeat some. Equal vectors of
other names are only noted.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from areir.errors import counted
from areir.evaluation.scores import rows_at_once

SAME_VECTOR = 1 - 2e-6  # the least cosine of two; float32 rounds by less
SEEN = 100  # queries whose vectors are looked for in the gallery


def number_names(file):
    """Number images of one name in queries and gallery as one file.

    Names that images of several classes share do not tell images apart, nor do names
    that mostly are of another class in the gallery, such as row numbers.
    """
    query, gallery = file.sides
    shared = sorted(set(query.images).intersection(gallery.images) - {''})
    numbers = {name: number for number, name in enumerate(shared)}
    columns = [
        {
            'file': [numbers.get(name, -1) for name in side.images],
            'class': side.labels,
            'side': place,
        }
        for place, side in enumerate(file.sides)
    ]
    table = pd.concat(map(pd.DataFrame, columns)).query('file >= 0')
    inside = table.groupby(['side', 'file'])['class'].nunique()
    across = table.groupby('file')['class'].nunique()
    if (inside > 1).any() or (across > 1).mean() > 1 / 2:
        file.notices.append(
            f'names such as {shared[0]} are of several classes, so they do not tell '
            'which queries the gallery holds: give whole paths'
        )
        return
    file.in_gallery = int((table['side'] == 0).sum())
    if shared:
        file.notices.append(
            f'the gallery has images of the names of '
            f'{counted(file.in_gallery, "query")}, such as {shared[0]}: no query finds '
            'its own'
        )
        for side, each in zip(file.sides, columns):
            side.files = torch.tensor(each['file'])


def number_repeats(file):
    """Number rows of one name and vector as one file."""
    side = file.query
    _, first, names = np.unique(side.images, return_index=True, return_inverse=True)
    first = torch.from_numpy(first[names])  # (N,) the first row of this name
    rows = (first != torch.arange(len(first))).nonzero().flatten()
    pairs = [side.embeddings[each].double() for each in (rows, first[rows])]
    rows = rows[F.cosine_similarity(*pairs) > SAME_VECTOR]
    if len(rows):
        file.notices.append(
            f'{counted(len(rows), "image")} listed more than once, such as '
            f'{side.images[rows[0]]}: none finds itself'
        )
        side.files = torch.full_like(first, -1)
        side.files[rows] = side.files[first[rows]] = first[rows]


def note_equal_vectors(file, images):
    """Note whether queries have the vector of an image that they do not ignore.

    images: LabelledImages of the file. At most SEEN queries are looked at.
    """
    device, count = images.query.device, len(images.query)
    rows = torch.arange(0, count, -(-count // SEEN), device=device)
    vectors = F.normalize(images.query[rows, : file.dimensions].float())
    found = torch.zeros_like(rows, dtype=torch.bool)
    places = torch.arange(len(images.gallery), device=device)
    for block in places.split(rows_at_once(file.dimensions)):
        others = F.normalize(images.gallery[block, : file.dimensions].float())
        same = vectors @ others.T > SAME_VECTOR
        if images.leave_one_out or images.ignored:
            same &= ~images.is_ignored(rows[:, None], block)
        found |= same.any(dim=1)
    copies = rows[found]
    if len(copies):
        seen = f' of {len(rows)} looked at' if len(rows) < count else ''
        file.notices.append(
            f'{counted(len(copies), "query")}{seen}, such as row {copies[0]}, with the '
            'vector of an image that they search: if it is the same image, give both '
            'one name (images) or number (files), and none finds itself'
        )
