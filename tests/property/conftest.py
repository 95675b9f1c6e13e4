"""Hypothesis for `make test`: the same examples in every run, and no deadline on a busy machine."""

from hypothesis import settings

settings.register_profile("make_test", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("make_test")
