"""Files of a split that are the same, byte for byte: images that were seen before."""

from collections import defaultdict

from areir.errors import printable

# pairs of parts whose copies change what is measured
PAIRS = (
    *(('train', 'test'), ('train', 'query'), ('train', 'gallery')),
    *(('query', 'gallery'), ('test', 'test')),
)


def find_leaks(contents, records, ignored=True):
    """Return (counts, sentences, numbers) of the copies in a split.

    contents: of each record, what it shares with its copies alone; ignored: whether a
    query ignores them. counts: {'train/test': images of the second part that the first
    has, too}, without zeros; numbers: {record.path: number} of images that have copies,
    and copies have the same number.
    """
    copies = defaultdict(list)
    for content, record in zip(contents, records):
        copies[content].append(record)
    copies = [group for group in copies.values() if len(group) > 1]
    rule = 'a query ignores its copies' if ignored else 'the benchmark counts them'
    counts, sentences = {}, []
    for first, second in PAIRS:
        count, example = 0, None
        for group in copies:
            seen = [record for record in group if record.part == first]
            also = [record for record in group if record.part == second]
            if seen and also and (first != second or len(seen) > 1):
                count += len(also)
                example = example or (seen[0], also[-1])
        if count:
            counts[f'{first}/{second}'] = count
            where = f'in {first} and in {second}' if first != second else f'in {first}'
            remark = 'training has seen them' if first == 'train' else rule
            sentences.append(describe(count, where, *example, remark))
    # copies in training and in the test are told above, whatever their classes
    sides = [
        [record for record in group if (record.part == 'train') == trained]
        for group in copies
        for trained in (True, False)
    ]
    mixed = [group for group in sides if len({record.label for record in group}) > 1]
    if mixed:
        count, (first, *others) = sum(map(len, mixed)), mixed[0]
        other = next(record for record in others if record.label != first.label)
        remark = 'correct their labels' if ignored else rule
        sentences.append(describe(count, 'in several classes', first, other, remark))
    numbers = {
        record.path: number for number, group in enumerate(copies) for record in group
    }
    return counts, sentences, numbers


def describe(count, where, record, other, remark):
    """Return the sentence about `count` images that have copies `where`."""
    example = f'{printable(record.path)} and {printable(other.path)}'
    return f'identical files {where}: {count:,}, such as {example}; {remark}'
