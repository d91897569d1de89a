"""What the scripts stand on: data, training, retrieval and output."""
