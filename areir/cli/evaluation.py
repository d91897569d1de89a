"""The flags of evaluate.py."""

from areir.cli import make_parser
from areir.cli.types import RECALLS, path, positives, svg


def get_parser():
    parser = make_parser(
        'Evaluate embeddings exactly, with 95 % intervals over classes.'
    )
    parser.add_argument(
        'file',
        nargs='?',
        type=path,
        help='a database of train.py or of the original code; a .npz, .pt, .h5 or '
        '.safetensors file of embeddings and labels and, if the queries are not the '
        'gallery, also query_embeddings and query_labels; or vectors in a .npy, .csv, '
        '.tsv, .txt or .parquet file; or a folder, whose runs are listed',
    )
    add = parser.add_argument_group('what is measured').add_argument
    flag = add('--labels', metavar='FILE', type=path)
    flag.help = (
        'labels of a file that has none, one for each vector: a .npy or .txt file, or '
        'a .csv with the column label or class and optionally path, group, is_query, '
        'is_gallery [default value is labels.npy, labels.csv, labels.txt or images.csv '
        'beside the file]'
    )
    flag = add('--metric', choices=['cosine', 'dot', 'euclidean'])
    flag.help = (
        'how two vectors are compared; vectors of one length are ranked alike by all '
        'three [default value is cosine]'
    )
    known = ','.join(map(str, RECALLS))
    flag = add('--recalls', type=positives)
    flag.help = (
        f"K of Recall@K [default value is '{known}', up to the number of images]"
    )
    flag = add('--verification', metavar='SVG', nargs='?', const=True, type=svg)
    flag.help = (
        'also report how well a threshold tells pairs of one class from others: true '
        'matches at 1, 0.1 and 0.01 %% false ones and the equal error rate; with a '
        'file, draw the curve there'
    )
    flag = add('--compare', metavar='OTHER', nargs='+', type=path, default=[])
    flag.help = (
        'a second file with embeddings of the same images, to compare with; with a '
        'folder, the names of two of its runs'
    )
    flag = add('--evaluate_heads', metavar='1,2,4', type=positives, default=[])
    flag.help = (
        'also report Recall@1 of the first 1, 2, 4 heads, of a database of train.py '
        '--dimensions 0 --whitening 0'
    )
    add = parser.add_argument_group('output and device').add_argument
    add('--json', action='store_true', help='print the report as JSON')
    flag = add('--device')
    flag.help = 'cpu or cuda [default value is cuda if there is a GPU, else cpu]'
    return parser
