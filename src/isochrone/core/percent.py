"""Shares in percent, as people read them."""

EQUAL = 1e-9  # percent: sums of scaled counts differ by so little


def percent(part: float, whole: float = 1.0) -> str:
    """`part` of `whole`; what is nearly all or nearly nothing is not called so."""
    found = 100 * part / whole
    if 99.95 <= found < 100 - EQUAL:
        return "> 99.9 %"
    return "< 0.1 %" if EQUAL < found < 0.05 else f"{found:.1f} %"
