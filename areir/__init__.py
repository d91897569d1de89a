"""The package behind the scripts: data, training, retrieval and output."""
