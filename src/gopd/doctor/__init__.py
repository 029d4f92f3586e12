"""`gopd doctor`: the mistakes that cost days, found in minutes.

`checks` is the list of what is looked at. `gather` samples and scores a few rows once, into the `evidence` that every
check reads; `tokens`, `responses`, `scoring`, `teachers`, `rewards` and `resources` judge it; `show` and `command` are
what users see. Nothing is written to disk.
"""
