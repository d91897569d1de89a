"""A campaign of damaged files, kills, full disks and pairs of processes.

    make campaign                                       # all of it
    PYTHONPATH=tests python -m campaign --seed 7 --cases 200 --only index
    PYTHONPATH=tests python -m campaign --seed 7 --only index --case 133   # one again

Each case copies a small valid world, harms it, runs a script, and classifies the
outcome. `right` and `clear line` are what users should see; anything else fails.

Some damage leaves a well-formed file with other contents. It cannot be noticed without
the original, so its outcome counts as right, in a column of its own, `unknowable`.
This is the whole list:

- text files of the user, which hold no checksum (annotation lists, --csv, the CSV of
  --labels): changed characters, fields, lines and blocks, and a cut end, as long as
  the rest is valid text. Zeros, random bytes and wrong encodings must be noticed.
- an uncompressed MATLAB file: changed bytes, the content of another such file
- a .npy file of the user's own: changed numbers
- an image: the content of another image; a JPEG: changed bytes
- a .pth file that other code has saved again with other values
- an image of a folder that is searched: removed

All other damage of files that this project writes must be noticed.
"""
