"""The flags of the scripts. Nothing here imports torch, so --help answers at once."""
