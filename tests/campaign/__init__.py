"""A campaign of damaged files, kills, full disks and pairs of processes.

    make campaign                                       # all of it
    PYTHONPATH=tests python -m campaign --seed 7 --cases 100 --only index
    PYTHONPATH=tests python -m campaign --seed 7 --only index --case 13    # one again

Each case copies a small valid world, harms it, runs a script, and classifies the
outcome. A file is cut short, emptied, loses a bit, or holds another kind of content;
work is killed, runs on a full disk, or runs twice at once. `right` and `clear line` are
what users should see; anything else fails.

Some damage leaves a well-formed file with other contents, such as a CSV that ends early
or a changed pixel. Nobody can notice it without the original, so its outcome counts as
right, in a column of its own, `unknowable`. `targets.py` says for which files that is.
"""
