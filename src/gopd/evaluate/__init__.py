"""Suites of problems, answered, graded by the verifiers that training has, and summed up with intervals."""
