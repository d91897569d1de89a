"""The flags of the scripts. To answer --help at once, nothing here imports torch."""
