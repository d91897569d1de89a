"""A campaign of damaged files, kills, full disks and pairs of processes.

    make campaign                                       # all of it
    PYTHONPATH=tests python -m campaign --seed 7 --cases 200 --only index
    PYTHONPATH=tests python -m campaign --seed 7 --only index --case 133   # one again

Each case copies a small valid world, harms it, runs a script, and classifies the
outcome. `right` and `clear line` are what users should see; anything else fails.

Some damage leaves a file that says something else and is as well-formed as before.
Nobody can know it without the original, so its outcome counts as right and has a
column of its own, `unknowable`. These are all:

- texts that people write, which hold no checksum (annotation lists, --csv, the CSV of
  --labels): changed characters, fields, lines and blocks, and a cut end, as long as
  what is left is valid text. Zeros, random bytes and wrong encodings must be noticed.
- a MATLAB file without compression: changed bytes, the content of another such file
- a .npy file of the user's own: changed numbers
- an image: the content of another image; a JPEG: changed bytes
- a .pth file whose values were replaced and which was saved anew, as other code may
- an image of a folder that is searched: it is gone

Files that this project writes have no such excuse.
"""
