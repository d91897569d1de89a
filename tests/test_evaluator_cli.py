"""The command `python retrieval.py FILE`: what it reads, prints, compares and refuses."""
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import retrieval

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COUNT = 24
EMBEDDINGS = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 5
TEXTS = [f'class {"edcba"[label]}' for label in LABELS]
IMAGES = [f'{number}.png' for number in range(COUNT)]


class RunsWhenUnpickled:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.fixture
def save(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def saved(name, **contents):
        if name.endswith('.npz'):
            np.savez(name, **{key: np.asarray(value) for key, value in contents.items()})
        else:
            torch.save(contents, name)
        return name

    return saved


@pytest.fixture
def call(monkeypatch, capsys):
    def called(*flags):
        monkeypatch.setattr(sys, 'argv', ['retrieval.py', *map(str, flags)])
        retrieval.main()
        found = capsys.readouterr()
        assert not found.err
        return found.out

    return called


@pytest.fixture
def refusal(monkeypatch, capsys):
    def refused(*flags):
        monkeypatch.setattr(sys, 'argv', ['retrieval.py', *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            retrieval.main()
        found = capsys.readouterr()
        assert end.value.code == 2 and not found.out
        line, = found.err.splitlines()
        assert line.startswith('retrieval.py: error: ')
        return line

    return refused


def run(*flags):
    return subprocess.run([sys.executable, os.path.join(REPOSITORY, 'retrieval.py'), *flags], capture_output=True,
                          text=True)


# Reading


@pytest.mark.parametrize('name', ['file.npz', 'file.pt', 'file.pth'])
@pytest.mark.parametrize('labels', [LABELS, TEXTS], ids=['integers', 'texts'])
def test_each_image_queries_all_others(name, labels, save, call):
    report = json.loads(call(save(name, embeddings=EMBEDDINGS, labels=labels), '--json', '--recalls', '1,4,23'))
    assert report['metrics'] == retrieval.evaluate(EMBEDDINGS, LABELS, [1, 4, 23])
    assert (report['queries'], report['classes'], report['dimensions'], report['file']) == (COUNT, 5, 6, name)


@pytest.mark.parametrize('name', ['file.npz', 'file.pt'])
@pytest.mark.parametrize(('query', 'gallery'), [('query_', ''), ('query_', 'gallery_'), ('', 'gallery_')])
@pytest.mark.parametrize('labels', [LABELS, TEXTS], ids=['integers', 'texts'])
def test_queries_with_a_gallery(name, query, gallery, labels, save, call):
    save(name, **{query + 'embeddings': EMBEDDINGS[:9], query + 'labels': labels[:9]},
         **{gallery + 'embeddings': EMBEDDINGS[9:], gallery + 'labels': labels[9:]})
    report = json.loads(call(name, '--json', '--recalls', '1,15'))
    assert report['metrics'] == retrieval.evaluate(EMBEDDINGS[:9], LABELS[:9], [1, 15], EMBEDDINGS[9:], LABELS[9:])
    assert report['queries'] == 9 and '15' in report['how']


def test_texts_are_numbered_alike_in_queries_and_gallery(save, call):
    save('file.npz', query_embeddings=np.eye(2), query_labels=['b', 'c'], embeddings=np.eye(2), labels=['a', 'b'])
    metrics = json.loads(call('file.npz', '--json', '--recalls', '1,2'))['metrics']
    assert (metrics['recall@1'], metrics['recall@2'], metrics['queries_without_positive']) == (0, .5, 1)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.uint32, np.int8, np.int32])
def test_labels_of_any_integer_type(dtype, save, call):
    save('file.npz', embeddings=EMBEDDINGS, labels=LABELS.numpy().astype(dtype))
    metrics = json.loads(call('file.npz', '--json', '--recalls', '1'))['metrics']
    assert metrics == retrieval.evaluate(EMBEDDINGS, LABELS, [1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_type(dtype, save, call):
    save('file.pt', embeddings=EMBEDDINGS.to(dtype), labels=LABELS.tolist())
    metrics = json.loads(call('file.pt', '--json', '--recalls', '1'))['metrics']
    assert metrics == retrieval.evaluate(EMBEDDINGS.to(dtype).float(), LABELS, [1])


# Printing


def test_usual_recalls_as_far_as_there_are_images(save, call):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS)
    metrics = json.loads(call('file.pt', '--json'))['metrics']
    assert [name for name in metrics if name.startswith('recall')] == [f'recall@{k}' for k in (1, 2, 4, 8, 10, 20)]


def test_json_holds_what_the_functions_return(save, call):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS)
    report = json.loads(call('file.pt', '--json', '--recalls', '1,2'))
    values = retrieval.measures(retrieval.rank_positives(EMBEDDINGS, LABELS), [1, 2])
    expected = retrieval.confidence_intervals(values, LABELS)
    assert report['intervals'] == {name: list(limits) for name, limits in expected.items()}


def test_json_has_null_for_the_intervals_of_one_class(save, call):
    save('file.pt', embeddings=EMBEDDINGS, labels=[3] * COUNT)
    out = call('file.pt', '--json')
    assert 'NaN' not in out and json.loads(out)['intervals']['map@r'] == [None, None]
    assert 'nan' not in call('file.pt').lower()


def test_table(save, call):
    save('file.pt', embeddings=torch.eye(4).repeat(2, 1), labels=torch.arange(8) % 4)
    lines = call('file.pt', '--recalls', '1').splitlines()
    assert lines[0].startswith('file.pt: 8 images of 4 classes, 4 dimensions')
    rows = {line[:14].strip(): line[14:].split() for line in lines}
    assert rows['recall@1'] == rows['map@r'] == rows['r_precision'] == ['100.00%'] * 3
    assert rows['mean rank'][0] == '1.0' and rows['no positive'][0] == '0'


def test_a_single_image_has_nothing_to_retrieve(save, refusal):
    save('file.pt', embeddings=EMBEDDINGS[:1], labels=LABELS[:1])
    assert 'file.pt: a single image' in refusal('file.pt')


@pytest.mark.parametrize(('notes', 'marked'), [
    ({'protocol': 'strict', 'select': 'last'}, False), ({}, False), ({'protocol': 'loose'}, True),
    ({'protocol': 'strict', 'select': 'test'}, True), ({'select': 'test'}, True),
])
def test_results_of_another_protocol_are_marked(notes, marked, save, call):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS, **notes)
    assert ('not comparable' in call('file.pt')) == marked


# Comparing


def test_comparison_of_the_same_images_in_another_order(save, call):
    other = EMBEDDINGS + .7 * EMBEDDINGS.flip(0)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS, images=IMAGES)
    save('same.npz', embeddings=other, labels=LABELS, images=IMAGES)
    save('shuffled.npz', embeddings=other[order], labels=[TEXTS[i] for i in order], images=[IMAGES[i] for i in order])
    same, shuffled = (json.loads(call('file.pt', '--json', '--recalls', '1,5', '--compare', name))
                      for name in ('same.npz', 'shuffled.npz'))
    for name, found in same['difference'].items():
        assert found == pytest.approx(shuffled['difference'][name])
        assert found['difference'] == pytest.approx(same['metrics'][name] - same['other']['metrics'][name])
    assert same['metrics'] == shuffled['metrics']
    assert same['other']['metrics'] == retrieval.evaluate(other, LABELS, [1, 5])
    ours, theirs = (retrieval.measures(retrieval.rank_positives(x, LABELS), [1, 5]) for x in (EMBEDDINGS, other))
    for name, expected in retrieval.compare(ours, theirs, LABELS).items():
        assert tuple(same['difference'][name].values()) == pytest.approx(expected)


def test_comparison_with_itself(save, call):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS)
    report = json.loads(call('file.pt', '--json', '--compare', 'file.pt'))
    assert all(found == {'difference': 0, 'low': 0, 'high': 0, 'p': 1} for found in report['difference'].values())
    assert 'compared with file.pt' in call('file.pt', '--compare', 'file.pt')


def test_comparison_of_queries_with_a_gallery_goes_by_the_names_of_the_queries(save, call):
    save('one.pt', query_embeddings=EMBEDDINGS[:9], query_labels=LABELS[:9], query_images=IMAGES[:9],
         embeddings=EMBEDDINGS[9:], labels=LABELS[9:], images=IMAGES[9:])
    save('two.pt', query_embeddings=EMBEDDINGS[:9].flip(0), query_labels=LABELS[:9].flip(0),
         query_images=IMAGES[:9][::-1], gallery_embeddings=EMBEDDINGS[9:], gallery_labels=LABELS[9:])
    report = json.loads(call('one.pt', '--json', '--recalls', '1,15', '--compare', 'two.pt'))
    assert all(found['p'] == 1 and found['difference'] == 0 for found in report['difference'].values())


@pytest.mark.parametrize('other', [
    {'images': [*IMAGES[1:], 'another.png']},
    {'embeddings': EMBEDDINGS[1:], 'labels': LABELS[1:], 'images': IMAGES[1:]},
    {'embeddings': EMBEDDINGS[1:], 'labels': LABELS[1:], 'images': None},
    {'labels': LABELS.roll(1)},
    {'labels': LABELS.roll(1), 'images': None},
    {'labels': LABELS.clamp(max=3)},
    {'labels': torch.arange(COUNT)},
], ids=['name', 'number by name', 'number', 'labels', 'labels without names', 'two classes in one', 'classes of one'])
def test_comparison_with_other_images_is_refused(other, save, refusal):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS, images=IMAGES)
    contents = {'embeddings': EMBEDDINGS, 'labels': LABELS, 'images': IMAGES, **other}
    save('other.pt', **{name: value for name, value in contents.items() if value is not None})
    line = refusal('file.pt', '--compare', 'other.pt')
    assert 'file.pt and other.pt' in line
    assert 'file.pt' in refusal('other.pt', '--compare', 'file.pt')


@pytest.mark.parametrize('images', [IMAGES[:-1], [*IMAGES, 'more.png'], 5, ['same.png'] * COUNT, [['a', 'b']] * COUNT,
                                    [['a', 'b'], ['c']] * 12],
                         ids=['few', 'many', 'number', 'equal', 'table', 'ragged'])
def test_image_names_that_do_not_fit_are_refused(images, save, refusal):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS, images=images)
    assert 'file.pt' in refusal('file.pt', '--compare', 'file.pt')


@pytest.mark.parametrize('other', [
    {'gallery_embeddings': EMBEDDINGS[9:20], 'gallery_labels': LABELS[9:20]},
    {'gallery_embeddings': EMBEDDINGS[9:], 'gallery_labels': LABELS[9:].clamp(max=3)},
    {'gallery_embeddings': EMBEDDINGS[9:], 'gallery_labels': LABELS[9:], 'gallery_images': IMAGES[:15]},
    {},
], ids=['smaller', 'other classes', 'other names', 'none'])
def test_comparison_over_another_gallery_is_refused(other, save, refusal):
    queries = {'query_embeddings': EMBEDDINGS[:9], 'query_labels': LABELS[:9], 'query_images': IMAGES[:9]}
    save('file.pt', **queries, embeddings=EMBEDDINGS[9:], labels=LABELS[9:], images=IMAGES[9:])
    if not other:
        queries = {'embeddings': EMBEDDINGS[:9], 'labels': LABELS[:9], 'images': IMAGES[:9]}
    save('other.pt', **queries, **other)
    assert 'file.pt and other.pt: ' in refusal('file.pt', '--recalls', 1, '--compare', 'other.pt')


def test_recall_of_the_first_heads(save, call, refusal):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS, ensemble_size=3)
    heads = json.loads(call('file.pt', '--json', '--evaluate_heads', '1,2,3'))['heads']
    for count in (1, 2, 3):
        wanted = retrieval.evaluate(EMBEDDINGS[:, :2 * count], LABELS, [1])['recall@1']
        assert heads[str(count)]['recall@1'] == pytest.approx(wanted)
    assert 'file.pt has 3 heads' in refusal('file.pt', '--evaluate_heads', '4')
    save('foreign.npz', embeddings=EMBEDDINGS, labels=LABELS)
    assert 'foreign.npz has an unknown number of heads' in refusal('foreign.npz', '--evaluate_heads', '1')


def test_an_empty_name_to_compare_with_is_no_comparison(save, refusal):
    assert 'no such file' in refusal(save('file.pt', embeddings=EMBEDDINGS, labels=LABELS), '--compare', '')


def test_the_other_file_is_named_where_it_is_at_fault(save, refusal):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS)
    save('other.pt', embeddings=EMBEDDINGS * torch.nan, labels=LABELS)
    assert 'other.pt: ' in refusal('file.pt', '--compare', 'other.pt')
    assert 'missing.pt: no such file' in refusal('file.pt', '--compare', 'missing.pt')


# Refusals


@pytest.mark.parametrize('name', ['missing.pt', 'missing.npz', 'folder/missing.pt'])
def test_missing_file(name, save, refusal):
    assert f'{name}: no such file' in refusal(name)


@pytest.mark.parametrize('name', ['file.pt', 'file.npz'])
@pytest.mark.parametrize('share', [0, .3, .9])
def test_damaged_file(name, share, save, refusal):
    save(name, embeddings=EMBEDDINGS, labels=LABELS)
    with open(name, 'rb+') as file:
        file.truncate(int(os.path.getsize(name) * share))
    assert f'{name}: damaged' in refusal(name)


@pytest.mark.parametrize('name', ['file.pt', 'file.npz'])
def test_file_of_something_else(name, save, refusal):
    with open(name, 'w') as file:
        file.write('id,x,y\n1,2,3\n' * 100)
    assert f'{name}: ' in refusal(name)


@pytest.mark.parametrize('key', ['embeddings', 'labels', 'images'])
def test_objects_in_an_npz_are_refused(key, save, refusal):
    contents = {'embeddings': EMBEDDINGS, 'labels': LABELS, key: np.array([RunsWhenUnpickled()] * COUNT, dtype=object)}
    assert 'file.npz: ' in refusal(save('file.npz', **contents))
    assert not os.path.exists('executed')


def test_objects_that_are_not_needed_are_not_read(save, call):
    np.savez('file.npz', embeddings=EMBEDDINGS, labels=LABELS, notes=np.array([RunsWhenUnpickled()], dtype=object))
    assert call('file.npz') and not os.path.exists('executed')


def test_arrays_in_a_pt_are_refused_with_the_way_out(save, refusal):
    line = refusal(save('file.pt', embeddings=EMBEDDINGS.numpy(), labels=LABELS))
    assert 'tensors with torch.save' in line


def test_objects_in_a_pt_are_not_executed(save, refusal):
    assert 'file.pt: ' in refusal(save('file.pt', embeddings=EMBEDDINGS, labels=LABELS, extra=RunsWhenUnpickled()))
    assert not os.path.exists('executed')


@pytest.mark.parametrize('name', ['file.pt', 'file.npz'])
def test_a_pickle_is_refused_in_one_line_and_not_executed(name, save):
    with open(name, 'wb') as file:
        pickle.dump({'embeddings': RunsWhenUnpickled(), 'labels': [1]}, file)
    result = run(name)
    assert not os.path.exists('executed')
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.splitlines() == [result.stderr.rstrip('\n')]
    assert result.stderr.startswith(f'retrieval.py: error: {name}: ')


@pytest.mark.parametrize(('contents', 'missing'), [
    ({'embeddings': EMBEDDINGS}, 'labels not in it, only embeddings'),
    ({'labels': LABELS}, 'embeddings not in it, only labels'),
    ({}, 'embeddings, labels not in it'),
    ({'query_embeddings': EMBEDDINGS, 'query_labels': LABELS}, 'embeddings, labels not in it'),
    ({'query_embeddings': EMBEDDINGS, 'embeddings': EMBEDDINGS, 'labels': LABELS}, 'query_labels not in it'),
    ({'query_embeddings': EMBEDDINGS, 'query_labels': LABELS, 'gallery_embeddings': EMBEDDINGS, 'labels': LABELS},
     'gallery_labels not in it'),
])
@pytest.mark.parametrize('name', ['file.pt', 'file.npz'])
def test_missing_arrays(name, contents, missing, save, refusal):
    assert f'{name}: {missing}' in refusal(save(name, **contents))


@pytest.mark.parametrize(('flags', 'offender'), [
    (['--recalls', '1,24'], 'recall@24: choose K from 1 to 23'), (['--recalls', '0'], 'recall@0'),
    (['--recalls', '-1'], 'recall@-1'), (['--recalls', 'one'], 'one'), (['--recalls', '1.5'], '1.5'),
    (['--device', 'toaster'], 'toaster'), (['--unknown'], '--unknown'),
])
def test_flags_that_do_not_fit(flags, offender, save, refusal):
    assert offender in refusal(save('file.pt', embeddings=EMBEDDINGS, labels=LABELS), *flags)


def test_cuda_without_a_gpu(save, refusal):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert '--device cuda: ' in refusal(save('file.pt', embeddings=EMBEDDINGS, labels=LABELS), '--device', 'cuda')


def test_no_file(refusal):
    assert 'file' in refusal()


def with_bad_row(value, row=7):
    embeddings = EMBEDDINGS.clone()
    embeddings[row, 2] = value
    return embeddings


@pytest.mark.parametrize(('contents', 'offender'), [
    ({'embeddings': with_bad_row(torch.nan)}, 'NaN or infinity in 1 images: 7'),
    ({'embeddings': with_bad_row(torch.inf)}, 'NaN or infinity in 1 images: 7'),
    ({'embeddings': with_bad_row(1e30)}, 'normalise'),
    ({'embeddings': [TEXTS] * COUNT}, 'embeddings'),
    ({'embeddings': TEXTS}, 'embeddings'),
    ({'embeddings': LABELS[:, None]}, 'floating point'),
    ({'embeddings': EMBEDDINGS[0]}, ': embeddings must be'),
    ({'embeddings': EMBEDDINGS[:0]}, 'non-empty'),
    ({'labels': LABELS[1:]}, 'one per image'),
    ({'labels': TEXTS[1:]}, 'one per image'),
    ({'labels': LABELS.float()}, 'integers'),
    ({'labels': LABELS[:, None]}, 'one per image'),
    ({'labels': 'text'}, 'labels'),
])
@pytest.mark.parametrize('name', ['file.pt', 'file.npz'])
def test_contents_that_do_not_fit(name, contents, offender, save, refusal):
    line = refusal(save(name, **{'embeddings': EMBEDDINGS, 'labels': LABELS, **contents}))
    assert f'{name}: ' in line and offender in line


@pytest.mark.parametrize('contents', [
    {'embeddings': None}, {'labels': None}, {'embeddings': {'a': EMBEDDINGS}}, {'labels': {'a': 1}},
    {'embeddings': [[1.], [1., 2.]]}, {'labels': [[1], [1, 2]]}, {'embeddings': EMBEDDINGS.tolist()[:-1] + [[1.]]},
])
def test_contents_that_are_no_arrays(contents, save, refusal):
    assert 'file.pt: ' in refusal(save('file.pt', **{'embeddings': EMBEDDINGS, 'labels': LABELS, **contents}))


def test_a_file_that_is_no_dict(save, refusal):
    torch.save(EMBEDDINGS, 'file.pt')
    assert 'file.pt: not a dict' in refusal('file.pt')
    np.save('file', EMBEDDINGS.numpy())
    os.rename('file.npy', 'file.npz')
    assert 'file.npz: ' in refusal('file.npz')


def test_the_command_from_another_folder(save):
    save('file.npz', embeddings=EMBEDDINGS, labels=TEXTS)
    result = run('file.npz', '--json', '--recalls', '1,23')
    assert result.returncode == 0 and not result.stderr
    assert json.loads(result.stdout)['metrics'] == retrieval.evaluate(EMBEDDINGS, LABELS, [1, 23])


def test_output_that_cannot_be_written(save):
    save('file.pt', embeddings=EMBEDDINGS, labels=LABELS)
    command = [sys.executable, os.path.join(REPOSITORY, 'retrieval.py'), 'file.pt']
    with open('/dev/full', 'w') as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and 'cannot be written' in result.stderr
    gone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    gone.stdout.close()
    assert gone.stderr.read() == '' and gone.wait() == 0
