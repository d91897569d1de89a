"""The flags of inference.py."""

from areir.cli import add_device_flag, make_parser
from areir.cli.types import number, path, positive, strictness

DEFAULT_NETWORK = 'vit_base_patch32_siglip_256.v2_webli'  # without a trained model
DEFAULT_DATABASE = 'car_uncropped_resnet18_48_12_data_base.pth'
DEFAULT_QUERY = 'data/car/uncropped/008055.jpg'
DEFAULT_NUMBER = 8


def get_parser():
    parser = make_parser('Retrieve the images that are nearest to a query.')
    add = parser.add_argument_group('query').add_argument
    flag = add('--query_img_name', type=path)
    flag.help = (
        'an image file or an image of the database; a folder of images, each a query; '
        'or the folder of --gallery, to compare its images with each other '
        f'[default value is {DEFAULT_QUERY!r}, without --gallery]'
    )
    flag = add('--retrieval_num', type=positive)
    flag.help = (
        f'number of images to retrieve [default value is {DEFAULT_NUMBER}; 16 to '
        'compare a folder with itself]'
    )
    flag = add('--strictness', type=strictness, default='normal')
    flag.help = (
        'agreement of near-duplicates when a folder is compared with itself: strict, '
        'normal, loose, or a number up to 1; the higher, the fewer'
    )
    add_gallery_flags(parser.add_argument_group('what is searched').add_argument)
    add = parser.add_argument_group('search page and HTTP API').add_argument
    flag = add('--serve', metavar='PORT', nargs='?', const=8000, type=int)
    flag.help = 'serve a page and an API that search --gallery, by default at port 8000'
    flag = add('--host', default='127.0.0.1')
    flag.help = 'address to serve at; 0.0.0.0 is for other machines, with --token'
    flag = add('--token', metavar='FILE', type=path)
    flag.help = (
        'a file with a secret of at least 16 characters, which every request needs, as '
        'a bearer token or as the password'
    )
    add_output_flags(parser.add_argument_group('what is written').add_argument)
    return parser


def add_gallery_flags(add):
    flag = add('--data_base', type=path, default=DEFAULT_DATABASE)
    flag.help = 'database to search: a file, or a name below --results_root'
    flag = add('--gallery', metavar='DIR', type=path)
    flag.help = 'search the images of this folder and its subfolders instead'
    flag = add('--model', metavar='NAME', type=path)
    flag.help = (
        'model for --gallery and --export_model: a file, a name below --results_root, '
        'or a network that train.py takes, with its pretrained weights [default value '
        'is the newest in --results_root that was not trained on the sample, or '
        f'{DEFAULT_NETWORK} if there is none]'
    )
    flag = add('--calibrate', action='store_true')
    flag.help = 'set the threshold of a match by the class folders of --gallery'
    flag = add('--false_match_rate', type=number(float, 1e-6, 0.999))
    flag.help = (
        'share of the queries without a true match that --calibrate lets pass '
        '[default value is 0.01]'
    )
    flag = add('--index', choices=['exact', 'faiss'], default='exact')
    flag.help = 'faiss, if installed, searches approximately and prints its recall'
    add_device_flag(add)
    flag = add('--data_root', type=path)
    flag.help = 'folder of the datasets, if they have moved since training'


def add_output_flags(add):
    flag = add('--heat_maps', action='store_true')
    flag.help = 'draw the regions that make a query and its answers similar'
    flag = add('--export', metavar='DIR', type=path)
    flag.help = 'write vectors, paths and classes of what is searched to this folder'
    flag = add('--format', choices=['npy', 'parquet'])
    flag.help = (
        'of --export: vectors.npy and images.csv, or images.parquet, which vector '
        "databases import [default value is 'npy']"
    )
    flag = add('--export_model', metavar='FILE', type=path)
    flag.help = (
        'write the network of --model, from pixels to vectors, to FILE: .onnx, or .pt2 '
        'for torch.export'
    )
    flag = add('--report', action='store_true')
    flag.help = 'write an HTML page about the run of --data_base'
    add('--results_root', type=path, default='results', help='folder to write to')
