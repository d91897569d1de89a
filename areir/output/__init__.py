"""What is written and drawn: answers, sheets, heat maps, the report of a run."""
