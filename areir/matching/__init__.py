"""Whether two images match: thresholds, classes, confidence, duplicates."""
