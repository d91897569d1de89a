"""The search page: a local server that finds images like the pictures dropped on it."""
