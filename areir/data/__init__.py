"""Images, the datasets' layouts and splits, and the embedded sample."""
