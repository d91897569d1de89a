"""Colour profiles (ICC version 2), written byte by byte."""

import io
import struct

from PIL import ImageCms

# XYZ of red, green and blue relative to D50, and the exponent of the channels
PRIMARIES = {
    'Display P3': (
        (0.515, 0.241, -0.001),
        (0.292, 0.692, 0.042),
        (0.157, 0.067, 0.784),
    ),
    'Adobe RGB': ((0.61, 0.311, 0.019), (0.205, 0.626, 0.061), (0.149, 0.063, 0.745)),
    'ProPhoto': ((0.798, 0.288, 0.0), (0.135, 0.712, 0.0), (0.031, 0.0, 0.825)),
}
GAMMAS = {'Display P3': 2.2, 'Adobe RGB': 2.2, 'ProPhoto': 1.8}


def fixed(*numbers):
    """Return numbers as s15Fixed16."""
    return b''.join(struct.pack('>i', round(number * 65536)) for number in numbers)


def profile(kind, space, tags):
    """Return the bytes of a profile; kind: mntr or prtr; tags: {name: content}."""
    offset, table, body = 132 + 12 * len(tags), b'', b''
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack('>II', offset + len(body), len(content))
        body += content
    link = b'Lab ' if kind == b'prtr' else b'XYZ '
    header = struct.pack('>I4sI', offset + len(body), bytes(4), 0x02400000)
    header += kind + space + link + struct.pack('>6H', 2026, 1, 1, 0, 0, 0) + b'acsp'
    header = header.ljust(68, b'\0') + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b'\0') + struct.pack('>I', len(tags)) + table + body


def curve(gamma):
    """Return a curv tag of an exponent."""
    return b'curv' + bytes(4) + struct.pack('>IH', 1, round(gamma * 256))


def xyz(numbers):
    """Return an XYZ tag."""
    return b'XYZ ' + bytes(4) + fixed(*numbers)


def rgb_profile(name):
    """Return a profile of PRIMARIES, or sRGB as pillow writes it."""
    if name == 'sRGB':
        return ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    tags = {b'wtpt': xyz((0.9642, 1, 0.8249))}
    for channel, place in zip(b'rgb', PRIMARIES[name]):
        tags[bytes([channel]) + b'XYZ'] = xyz(place)
        tags[bytes([channel]) + b'TRC'] = curve(GAMMAS[name])
    return profile(b'mntr', b'RGB ', tags)


def grey_profile(gamma):
    """Return a profile of grey with an exponent."""
    tags = {b'wtpt': xyz((0.9642, 1, 0.8249)), b'kTRC': curve(gamma)}
    return profile(b'mntr', b'GRAY', tags)


def cmyk_profile(cyan):
    """Return a profile of four inks: full cyan has this Lab; all others give black."""
    lut = b'mft1' + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += bytes(range(256)) * 4
    for number in range(16):  # the first ink is the slowest
        lightness, a, b = {0: (100, 0, 0), 8: cyan}.get(number, (0, 0, 0))
        lut += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    lut += bytes(range(256)) * 3
    tags = {b'wtpt': xyz((0.9642, 1, 0.8249)), b'A2B0': lut}
    return profile(b'prtr', b'CMYK', tags)


def encode(image, content):
    """Return an sRGB image as the numbers that mean the same under another profile."""
    source = ImageCms.createProfile('sRGB')
    target = ImageCms.ImageCmsProfile(io.BytesIO(content))
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    mode = {'RGB': 'RGB', 'GRAY': 'L'}[target.profile.xcolor_space.strip()]
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.profileToProfile(image, source, target, intent, mode, flags=flags)
