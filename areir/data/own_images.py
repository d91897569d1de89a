"""Your own images in a folder: where it says the class of each, and in which part.

Classes are folders, or the identities of person and vehicle re-identification, where a
file's name begins with identity and camera: 0002_c1s1_000451_03.jpg.
"""

import math
import random
import re
from collections import Counter, defaultdict
from typing import NamedTuple

from areir.data.images import IMAGE_SUFFIXES
from areir.data.lists import DISTRACTOR, Record, look_alikes
from areir.errors import UserError, counted, printable

# the letters of a part's name: bounding_box_train, Test-Set, valid, image_query
PART_NAME = re.compile(
    '(?:boundingbox|bbox|images?)?(?:(?P<train>train(?:ing)?)'
    '|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?|eval(?:uation)?)'
    '|(?P<query>query|probe)|(?P<gallery>gallery))(?:set|dataset|data|images?)?'
)
WRAPPERS = ('images', 'image', 'img', 'imgs', 'data', 'dataset', 'photos', 'pictures')
# Market-1501, DukeMTMC-reID, CUHK03-NP, VeRi-776, MARS: https://github.com/KaiyangZhou/
# deep-person-reid and https://github.com/JDAI-CV/fast-reid read them so
IDENTITY_NAME = re.compile(r'(\d*-?\d+)_?(c\d+)', re.IGNORECASE)
UNUSED = 'unused'  # the part of images that neither train nor test


class Layout(NamedTuple):
    """What was understood of a folder of images."""

    text: str  # for the user: where the classes are, and how many
    problem: str  # why it cannot be a dataset, or ''
    choices: str  # what can be done if it is unclear where the class is, or ''
    # of each image: (part or None, class, camera or None), or None without a class
    places: list


def part_named(name):
    """Return the part of a split that a name, such as a folder's, means, or None."""
    match = PART_NAME.fullmatch(re.sub(r'[\W\d_]', '', name.lower()))
    return match.lastgroup if match else None


def folders_in(folders, base):
    """Return the names of the folders directly in `base`, of paths that end in '/'."""
    below = [folder[len(base) :] for folder in folders if folder.startswith(base)]
    return {folder.split('/')[0] for folder in below if folder}


def find_parts(folders, root):
    """Return ({folder: part of the split}, problem or '') of the folders in `root`.

    They are parts if all their names mean one, or if train and a test are among them
    and most names mean one, or the test holds folders. Without test, val is the test;
    with it, val is UNUSED.
    """
    names = sorted(folders_in(folders, root))
    words = {name: re.split(r'[\W_]+', name.lower()) for name in names}
    shared = set.intersection(*map(set, words.values())) if names else set()
    found = defaultdict(list)
    for name in names:  # of seg_train and seg_test, what differs
        differs = [word for word in words[name] if word not in shared]
        found[part_named(''.join(differs))].append(name)
    others = found.pop(None, [])

    def holds_folders(part):
        return any(folders_in(folders, f'{root}{name}/') for name in found[part])

    tests = [part for part in ('test', 'val', 'query') if found[part]]
    few = 2 * len(others) < len(names) or found['query']
    usual = found['train'] and tests and (few or any(map(holds_folders, tests)))
    if others and not usual:
        return {}, ''
    if found['query'] and not found['gallery']:
        found['gallery'] = found.pop('test', [])
    elif found['query']:
        found[UNUSED] += found.pop('test', [])
    elif found['val'] and not holds_folders('test'):
        found['val'], found['test'] = found['test'], found['val']
    found[UNUSED] += found.pop('val', [])
    parts, problem = {}, ''
    for part in ('train', 'test', 'query', 'gallery', UNUSED):
        same = [f'{root}{name}/' for name in found[part]]
        parts |= dict.fromkeys(same, part)
        if len(same) > 1 and part != UNUSED:
            problem = (
                f'{" and ".join(same)} have one meaning, {part}: rename or join them'
            )
    if bool(found['query']) != bool(found['gallery']):
        problem = 'query/ and gallery/ belong together, and one of them is missing'
    return parts, problem


def inner_folder(folders, base):
    """Return the folder below `base` that has the classes: train/images/ of train/."""
    while len(inner := folders_in(folders, base)) == 1:
        (name,) = inner
        around = base.split('/')[-2]
        if name.lower() not in (*WRAPPERS, around.lower()) and not part_named(name):
            break
        base += f'{name}/'
    return base


def read_identities(images, homes, place_of):
    """Return ((part, identity, camera) of each image, by its name, or None; problem).

    There are none unless all names have both and the images lie directly in their part,
    or in a folder for each identity. If most do, the problem names one that does not.
    homes, place_of: see `recognise`. Junk, of an identity such as -1, is None. Identity
    0 is background, unless it is trained or queried: it is DISTRACTOR if there are
    parts, and None if there are none.
    """
    found, known, odd = [], set(), []
    for image, home in zip(images, homes):
        place = None
        if home in place_of:
            part, names = place_of[home]
            match = IDENTITY_NAME.match(image, len(home))
            if not match or names not in ([], [match[1]]):
                odd.append(image)
            elif '-' not in match[1]:
                place = part, match[1], match[2].lower()
            if match and part in ('train', 'query'):
                known.add(match[1])
        found.append(place)
    if odd:
        few = 2 * len(odd) < sum(home in place_of for home in homes)
        remark = (
            'most images are named by identity and camera, as 0002_c1s1_000451_03.jpg, '
            f'but {printable(odd[0])} is not, or not in the folder of its identity: '
            'rename or remove it, or say --class_level 1: folders are the classes'
        )
        return [], remark if few else ''
    for index, place in enumerate(found):
        if place and not place[1].strip('0') and place[1] not in known:
            part, _, camera = place
            found[index] = (part, DISTRACTOR, camera) if part else None
    return found, ''


def compare_levels(folders, place_of):
    """Return (choices, unclear, example) of folders that lie in folders.

    choices: the --class_level that differ, in words; unclear: whether most images lie
    in folders that divide the first one further, or some do and no image lies directly
    in a first one, or such a first one has the name of a part; example: a folder that
    divides its first one.
    folders: {folder: number of images}; place_of: see `recognise`.
    """
    inside = defaultdict(Counter)  # of each first folder: {names: images}
    for folder, (part, names) in place_of.items():
        if part != UNUSED and names:
            inside[names[0]][tuple(names)] += folders[folder]
    paths = [names for counts in inside.values() for names in counts]
    choices, last, above = [], set(), 0
    for level in range(1, max(map(len, paths), default=0) + 1):
        classes = {names[:level] for names in paths if len(names) >= level}
        # whether it divides the images otherwise than the level above does
        if sorted(names[:above] for names in classes) != sorted(last):
            count = f'{counted(len(classes), "class")} such as {"/".join(min(classes))}'
            choices.append(f'--class_level {level}: {count}')
            last, above = classes, level
    divided = {first: counts for first, counts in inside.items() if len(counts) > 1}
    example = next((max(counts, key=len) for counts in divided.values()), ())
    deep = {  # with fewer images of their own than folders
        first: counts.total()
        for first, counts in divided.items()
        if counts[first,] < len(counts) - ((first,) in counts)
    }
    total = sum(counts.total() for counts in inside.values())
    shallow = any((first,) in counts for first, counts in inside.items())
    most = 2 * sum(deep.values()) > total or not shallow
    unclear = len(choices) > 1 and bool(deep) and (most or any(map(part_named, deep)))
    return printable('; '.join(choices)), unclear, '/'.join(example)


def describe(places, bases):
    """Return ('below train/ and val/: 6 and 6', parts without a class).

    The numbers are those of the classes of each part; `look_alikes` follow. places,
    bases: see `recognise`.
    """
    labels = {(place[0], place[1]) for place in places if place}
    count = Counter(part for part, label in labels if label != DISTRACTOR)
    used = [base for base, part in bases.items() if part != UNUSED]
    text = f' below {" and ".join(used)}: ' if any(used) else ': '
    text += ' and '.join(f'{count[bases[base]]:,}' for base in used)
    if unused := [base for base in bases if base not in used]:
        text += f'; {" and ".join(unused)} left out'
    text += ''.join(f'; {each}' for each in look_alikes(label for _, label in labels))
    return text, [base for base in used if not count[bases[base]]]


def recognise(images, class_level=None):
    """Return the Layout of images, paths relative to their folder.

    class_level: which folder below the part is the class, from 1; by default the first.
    """
    homes = [image[: image.rfind('/') + 1] for image in images]
    folders = Counter(homes)
    root = ''
    while len(inner := folders_in(folders, root)) == 1:
        root += f'{inner.pop()}/'
    parts, problem = find_parts(folders, root)
    bases = {inner_folder(folders, base): part for base, part in parts.items()}
    bases = bases or {root: None}
    # (part, names of the folders below it) of each folder of images
    place_of = {
        folder: (part, folder[len(base) :].split('/')[:-1])
        for base, part in bases.items()
        for folder in folders
        if folder.startswith(base)
    }
    places, odd = [], ''
    if not class_level:
        places, odd = read_identities(images, homes, place_of)
        problem = problem or odd
    if places:
        text = 'identities are in the names of the files' + describe(places, bases)[0]
        labels = [place[1] for place in places if place]
        distractors = labels.count(DISTRACTOR)
        if distractors:
            text += f'; {counted(distractors, "distractor")}'
        without = sum(folders[folder] for folder in place_of) - len(labels)
        if without:
            text += f'; {counted(without, "image")} without identity left out'
        return Layout(printable(text), problem, '', places)

    level = class_level or 1
    labels = {
        folder: (part, '/'.join(names[:level]), None)
        for folder, (part, names) in place_of.items()
        if len(names) >= level
    }
    places = [labels.get(home) for home in homes]
    choices, unclear, example = compare_levels(folders, place_of)
    text, empty = describe(places, bases)
    which = f' at level {class_level}' if class_level else ''
    text = f'classes are {"the" if root or parts else "its"} folders{which}{text}'
    if example and not class_level:
        text += f'; images in deeper folders, such as {example}/, belong to them'
    if not problem and empty:
        problem = f'the images of {empty[0] or "the folder"} lie in no class folders'
        needed = (
            choices if which and choices else 'a folder per class is needed, or --csv'
        )
        problem += f'{which}: {needed}'
    elif not problem and unclear and not class_level:
        problem = (
            f'which folder is the class? {choices}; or --data_path a folder inside'
        )
    elif not problem and any(label == DISTRACTOR for _, label, _ in labels.values()):
        problem = f'no class can have the name {DISTRACTOR}: rename its folder'
    return Layout(printable(text), problem, choices if unclear else odd, places)


def read_folder(root, files, class_level=None):
    """Return (layout, records) of any folder that has class folders or identities.

    Without parts of a split in it, the part of the records is None. Raises UserError if
    it is unclear which folder is the class, with the choices of `class_level`.
    """
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    layout = recognise(images, class_level)
    if layout.problem:
        raise UserError(f'{root}: {layout.problem}')
    records = [
        Record(part=place[0], label=place[1], path=path, group=place[2])
        for path, place in zip(images, layout.places)
        if place and place[0] != UNUSED
    ]
    return layout.text, records


def draw_parts(records, seed, test_share):
    """Draw the classes of the test from the seed; the others train.

    test_share: their share of all classes, rounded, a half down. Distractors are for
    the test. Raises UserError if fewer than two classes train, or if one is left for
    the test.
    """
    classes = sorted({record.label for record in records} - {DISTRACTOR})
    random.Random(seed).shuffle(classes)
    tested = math.ceil(len(classes) * test_share - 0.5)
    trained = len(classes) - tested
    if trained < 2 or (test_share and tested < 2):
        raise UserError(
            f'--test_share {test_share:g}: of {len(classes)} classes, {trained} would '
            f'train and {tested} test, and each needs at least 2: choose another share '
            '(0 trains on all) or add classes'
        )
    train = set(classes[:trained])
    return [
        record._replace(part='train' if record.label in train else 'test')
        for record in records
    ]
