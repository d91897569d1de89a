"""What is written and drawn: answers, sheets, heat maps, the report of a run."""

import pandas as pd

# with pyarrow, pandas keeps text in a form that refuses file names that are not UTF-8
pd.options.mode.string_storage = 'python'
