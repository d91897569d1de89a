"""The one writer of whole files and folders, and the one reader of tensors.

A file or folder is written under a temporary name beside its final one and moved when
it is complete. Temporary names are unique: two writers of one file do not collide.
"""

import argparse
import codecs
import contextlib
import errno
import glob
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
import tempfile
import time
import warnings
import zipfile

import numpy as np
import safetensors.torch
import torch
from torch.serialization import safe_globals

from areir.errors import UserError

FORMAT = 4  # of the .pth files written here; raise it if their contents change
DISK_FULL = errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)
LONGEST_NAME = 200  # bytes
ABANDONED = 3600  # seconds without a change after which a temporary file is a leftover
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch before 1.6: not a zip file
# what pickled arrays, texts and numbers of numpy, paths and arguments are built by
BUILDERS = {
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    'numpy.core.multiarray._reconstruct': np.empty(0).__reduce__()[0],
    'numpy.core.multiarray.scalar': np.float64(0).__reduce__()[0],
    '_codecs.encode': codecs.encode,
    'pathlib.PosixPath': pathlib.PurePosixPath,
    'pathlib._local.PosixPath': pathlib.PurePosixPath,  # Python 3.13
    'pathlib.WindowsPath': pathlib.PureWindowsPath,
    'argparse.Namespace': argparse.Namespace,
}
BUILDERS |= {name.replace('.core.', '._core.'): f for name, f in BUILDERS.items()}


class WriteError(OSError):
    """A file or folder that cannot be written."""

    def __init__(self, path, error):
        reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
        # torch and faiss say little about a full disk
        unknown = getattr(error, 'errno', None) in (None, *DISK_FULL)
        question = ', is the disk full?' if unknown else ''
        super().__init__(f'{path} cannot be written{question} ({reason})')

    def __reduce__(self):  # for pickle: a worker process sends it to its parent
        return OSError, self.args


def cut_name(name, most=LONGEST_NAME):
    """Return a file name cut to at most `most` bytes; a cut character is left out.

    Disks limit a name to 255 bytes, and a temporary name is 19 bytes longer.
    """
    encoded = os.fsencode(name)
    if len(encoded) <= most:
        return name
    return encoded[:most].decode(sys.getfilesystemencoding(), errors='ignore')


def relative_path(path, start=os.curdir):
    """Return a path from the folder `start`; absolute between drives of Windows."""
    try:
        return os.path.relpath(path, start)
    except ValueError:
        return os.path.abspath(path)


def temporary_name(path):
    """Return a unique hidden name beside `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f'.{name}.{secrets.token_hex(6)}.part')


def remove_leftovers(folder, name=None, older_than=ABANDONED):
    """Remove what killed processes left of `name`, or of anything, in `folder`.

    older_than: seconds since the last change. Younger ones may still be written.
    """
    name = glob.escape(name) if name else '*'
    pattern = f'.{name}.{12 * "[0-9a-f]"}.part'
    for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime >= older_than:
                remove(path)


def is_folder(path):
    """Whether a path is a folder, not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def remove(path):
    """Remove a file or a folder if it is there."""
    if is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def make_writable(folder, flag, named=None):
    """Make a folder to write to. Raises UserError naming its flag if that fails.

    named: the folder that the flag named, if it is another.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f'{flag} {named or folder}: nothing can be written there '
            f'({error.strerror}): choose another folder'
        ) from error


@contextlib.contextmanager
def atomic_path(path, failures=(OSError, RuntimeError), tidy=True):
    """Yield a temporary name; move what is written there to `path` at the end.

    If the block fails, the temporary file, folder or link is removed and `path` stays
    as it was. failures: the errors that become a WriteError, an OSError that names
    `path`. torch and faiss report a full disk as a RuntimeError. tidy: first remove
    what killed processes left of `path`. That lists its folder, so pass False to write
    thousands of files to one folder, and call `remove_leftovers` once.
    """
    temporary = temporary_name(path)
    try:
        if tidy:
            remove_leftovers(*os.path.split(path))
        yield temporary
        if is_folder(path) and is_folder(temporary):
            shutil.rmtree(path)
        os.replace(temporary, path)
    except WriteError:
        raise
    except failures as error:
        raise WriteError(path, error) from error
    finally:
        remove(temporary)


def write_text(path, text):
    """Write a text file. File names in it need not be valid UTF-8."""
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        file.write(text.encode(errors='surrogateescape'))


def write_json(path, value):
    """Write a value as readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_table(path, table):
    """Write a pandas table as CSV, without its index."""
    write_text(path, table.to_csv(index=False))


def write_tensors(values):
    """Save each of {path: value}; move them only when all are complete."""
    with contextlib.ExitStack() as stack:
        for path, value in values.items():
            save_tensors(value, stack.enter_context(atomic_path(path)))


def save_tensors(value, path):
    """torch.save a dict to a path, not atomically, with the number FORMAT.

    Given the path, torch.save would store its name, so that equal values gave different
    bytes, and refuse paths that are not valid UTF-8. So it is given the open file.
    """
    with open(path, 'wb') as file:
        torch.save({'format': FORMAT, **value}, file)


@contextlib.contextmanager
def atomic_folder(path, mark=None):
    """Yield a temporary folder; move it to `path` when the block ends.

    A folder that is already there is replaced if it holds the file `mark`, which
    says that an earlier call wrote it. Otherwise raises UserError.
    """
    marked = mark and os.path.isfile(os.path.join(path, mark))
    if os.path.lexists(path) and not (marked and is_folder(path)):
        raise UserError(f'{path} was not written by this program: move it away')
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with atomic_path(path, failures=OSError) as temporary:
        os.mkdir(temporary)
        yield temporary


def is_unicode(text):
    """Whether a text has no surrogates, which mark bytes that are not UTF-8."""
    return not re.search('[\ud800-\udfff]', text)


def is_safetensors(start):
    """Whether a file begins so: the length of a header, then the header in JSON."""
    return int.from_bytes(start[:8], 'little') < 1e8 and start[8:9] == b'{'


def load_tensors(path, mmap=False, check=True):
    """Load what torch.save or safetensors wrote on the CPU; nothing is executed.

    Beside tensors and plain containers, only what BUILDERS build is loaded. torch.save
    writes zip files, whose checksums torch.load does not check: here the whole file is
    read once to check them, unless `check` is False. mmap: map the tensors from the
    file instead of reading them, if its path is valid UTF-8, which torch needs. Raises
    UserError naming the file if it is missing, damaged or of another kind, or holds
    other objects.
    """
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file')
    with open(path, 'rb') as file:
        start = file.read(len(LEGACY))
    allowed = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    allowed += [(function, name) for name, function in BUILDERS.items()]
    try:
        if is_safetensors(start):
            with open(path, 'rb') as file:
                return safetensors.torch.load(file.read())
        if check and start.startswith(b'PK'):
            with zipfile.ZipFile(path) as file:
                if file.testzip():
                    raise zipfile.BadZipFile('a checksum does not fit')
        mmap = mmap and is_unicode(path)
        # torch warns before it refuses a file
        with safe_globals(allowed), warnings.catch_warnings(action='ignore'):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for a damaged file
        if refused := re.search(r'(?:GLOBAL|function) (\S+)', str(error)):
            raise objects_refused(path, refused[1]) from error
        damaged = start in (b'', LEGACY) or is_safetensors(start)
        damaged |= isinstance(error, zipfile.BadZipFile)
        kind = 'damaged: copy it again' if damaged else 'no file of tensors'
        raise UserError(f'{path} is {kind} ({type(error).__name__})') from error


def objects_refused(path, name):
    """Return the UserError about a file that holds objects of the class `name`."""
    return UserError(
        f'{path} holds objects ({name}), which are not loaded, for they could run any '
        'code: save tensors, such as a state_dict(), with torch.save, or plain arrays '
        'with numpy.savez'
    )


def load_own(path, needed, advice, content=None, mmap=False):
    """Load a .pth file that this program wrote, a dict.

    needed: its keys; advice: what to do if it cannot be used; content: of the file, if
    it has been loaded; mmap: see `load_tensors`. Raises UserError as `load_tensors`
    does, if keys are missing, or if the file has another FORMAT.
    """
    content = load_tensors(path, mmap) if content is None else content
    written = content.get('format') if isinstance(content, dict) else None
    if written is None or (written == FORMAT and not set(needed) <= content.keys()):
        raise UserError(f'{path} is not the file that belongs there: {advice}')
    if written != FORMAT:
        raise UserError(f'{path} was written by another version: {advice}')
    return content
