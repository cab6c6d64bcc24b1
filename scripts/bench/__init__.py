"""Tools of all benchmarks: interleaved rounds, result files, tables and plots.

`rounds` measures contestants in turn; `results` says what a row of a JSON file holds, and adds rows
to the files; `tables` and `plots` show them; `steppers` are contestants that take random actions.
"""
