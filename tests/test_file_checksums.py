"""The checksum of an open file, read in blocks."""

import zlib

import pytest

from areir import files

BYTES = b'123456789'


@pytest.mark.parametrize(
    ('size', 'read'), [(0, 0), (1, 1), (5, 5), (9, 9), (100, 9), (None, 9), (-3, 0)]
)
def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path, monkeypatch, size, read):
    monkeypatch.setattr(files, 'READ', 2)
    (tmp_path / 'file').write_bytes(BYTES)
    with open(tmp_path / 'file', 'rb') as file:
        before = zlib.crc32(b'0')
        checksum = files.file_checksum(file, size, before)
        assert checksum == zlib.crc32(b'0' + BYTES[:read])
        assert file.read() == BYTES[read:]


def test_the_check_value_of_crc_32(tmp_path):
    """It is part of the definition of CRC-32/ISO-HDLC."""
    (tmp_path / 'file').write_bytes(BYTES)
    with open(tmp_path / 'file', 'rb') as file:
        assert files.file_checksum(file) == 0xCBF43926
