"""The index of a folder of images, the database of a run, and queries to them."""
