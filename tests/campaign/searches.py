"""The files that searches, reports, the page and evaluate.py read."""

from campaign import hooks
from campaign.targets import INDEX, NUMBERS, SAVED_ANEW, TEXT, Target, below
from campaign.world import (
    DATABASE,
    EXPORT,
    MODEL,
    NETWORK,
    QUERY,
    RUN,
    STORED,
    TRAINED,
    gallery,
    search,
)

IMAGE = (*NUMBERS, 'other_file', 'cut_end')


def searching():
    base = ['inference.py', '--data_base', DATABASE, '--results_root', 'out']
    known = [*base, '--query_img_name', STORED]
    unknown = [*base, '--query_img_name', QUERY]
    answer = ['inference.py', '--data_base', DATABASE, '--results_root', 'answers']
    answer += ['--query_img_name', STORED]
    report = ['inference.py', '--data_base', DATABASE, '--report']
    areas = ['data', 'photos', 'results']
    found = ['out/*/retrieved.csv']
    return [
        Target(
            'database',
            areas,
            [DATABASE],
            known,
            found,
            names=('--data_base',),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'model of a database', areas, [MODEL], unknown, found, unknowable=SAVED_ANEW
        ),
        Target(
            'query',
            areas,
            [QUERY, 'photos/photo.bmp'],
            [*base, '--query_img_name', '{file}'],
            found,
            unknowable=IMAGE,
        ),
        Target(
            'image that is found',
            areas,
            ['data/small/test/*/*.png'],
            known,
            ['out/*/*.csv'],
            unknowable=('other_file',),
        ),
        Target(
            'files of a report',
            areas,
            [DATABASE, f'results/{RUN}_run.json', f'results/{RUN}_results.csv'],
            report,
            ['results/*.html'],
            says=('results/*.html',),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'folder of answers',
            ['data', 'photos', 'answers', 'results'],
            ['answers/figure_6_01/*'],
            answer,
            ['answers/figure_6_01/*'],
            names=('answers/figure_6_01',),
        ),
        Target(
            'exported files',
            ['photos', 'results', 'exports'],
            ['exports/*.*'],
            EXPORT,
            ['exports/*.*'],
        ),
    ]


def indexes():
    kept = hooks.small_steps
    areas = ['photos', 'results', 'index']
    short = ['photos', 'files', 'short']
    return [
        Target(
            'index',
            areas,
            ['index/*_index/index.sqlite', 'index/*_index/vectors*'],
            search('index', *TRAINED),
            below('index', INDEX),
            before=kept,
            weight=2,
            names=('_index',),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'index, calibrated again',
            areas,
            ['index/*_index/index.sqlite'],
            search('index', *TRAINED, '--calibrate'),
            below('index', INDEX),
            printed=True,
            before=kept,
            names=('_index',),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'unfinished index',
            ['photos', 'results', 'unfinished'],
            ['unfinished/*_index/*'],
            search('unfinished', *TRAINED),
            below('unfinished', INDEX),
            before=kept,
            weight=2,
            names=('_index',),
        ),
        Target(
            'shortened index',
            short,
            ['short/*_index/index.sqlite', 'short/*_index/shortened_*'],
            search('short', *NETWORK),
            below('short', INDEX),
            before=kept,
            names=('_index',),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'weights of a network',
            short,
            ['files/resnet18-slim.pth'],
            search('out', *NETWORK),
            below('out', INDEX),
            before=kept,
            unknowable=SAVED_ANEW,
        ),
        Target(
            'model of a folder',
            areas,
            [MODEL],
            search('out', *TRAINED),
            below('out', INDEX),
            before=kept,
            unknowable=SAVED_ANEW,
        ),
        Target(
            'image of a folder',
            areas,
            ['photos/*/*.png', 'photos/*.bmp'],
            search('out', *TRAINED),
            below('out', INDEX),
            before=kept,
            unknowable=(*IMAGE, 'missing', 'folder'),
        ),
        Target(
            'faiss index',
            ['photos', 'results', 'faiss'],
            ['faiss/*_index/*.faiss'],
            search('faiss', *TRAINED, '--index', 'faiss'),
            below('faiss', INDEX),
            before=kept,
            names=('_index',),
            needs='faiss',
        ),
        Target(
            'picture sent to the page',
            ['photos', 'results', 'index'],
            [QUERY, 'photos/*/*.jpg', 'photos/photo.bmp'],
            ['page', '{file}', *gallery('index', *TRAINED)],
            printed=True,
            before=kept,
            names=('picture', 'Picture'),
            needs='flask',
            is_sent=True,
            unknowable=IMAGE,
        ),
    ]


def evaluation():
    words = ['evaluate.py', '--json', '--recalls', '1,2']
    table = ['--labels', 'files/it.csv']
    return [
        Target(
            'embeddings .pt',
            ['files'],
            ['files/it.pt'],
            [*words, 'files/it.pt'],
            printed=True,
            unknowable=SAVED_ANEW,
        ),
        Target(
            'embeddings .npz',
            ['files'],
            ['files/it.npz'],
            [*words, 'files/it.npz'],
            printed=True,
        ),
        Target(
            'embeddings .npy',
            ['files'],
            ['files/it.npy'],
            [*words, 'files/it.npy', *table],
            printed=True,
            unknowable=NUMBERS,
        ),
        Target(
            'labels',
            ['files'],
            ['files/it.csv'],
            [*words, 'files/it.npy', *table],
            printed=True,
            unknowable=TEXT,
        ),
        Target(
            'embeddings compared',
            ['files'],
            ['files/it.pt'],
            [*words, 'files/it.npz', '--compare', 'files/it.pt'],
            printed=True,
            unknowable=SAVED_ANEW,
        ),
    ]
