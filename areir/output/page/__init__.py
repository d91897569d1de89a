"""The search page: a local server that answers the pictures dropped on its page."""
