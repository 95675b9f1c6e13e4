"""Says in which currency an organisation pays: that of its prices, and no other."""

from isochrone.control.api.context import Context
from isochrone.core.ids import OrgId
from isochrone.core.money import is_currency


def currency_of(context: Context, org_id: OrgId) -> str | None:
    """That of the sheets that price what the organisation uses; None where there are none."""
    sheets = context.registry.prices.applying(org_id)
    return sheets[0].currency if sheets else None


def currency_problems(wanted: str | None, priced: str | None) -> list[str]:
    """What is wrong with an amount in `wanted` beside prices in `priced`; None asks for nothing."""
    if wanted is None:
        return []
    if not is_currency(wanted):
        return [f"currency: {wanted!r}: want three capital letters"]
    if priced not in (None, wanted):
        return [f"currency: prices are in {priced}, and {wanted} is never exchanged for it"]
    return []
