"""`tasuki-mp demo`: the Python standard library, analysed on every core by real jobs out of a real Postgres."""
