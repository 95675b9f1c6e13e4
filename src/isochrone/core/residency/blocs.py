"""Blocs: named groups of countries (EU, EEA, ...) and the country codes that exist at all.

Membership is data (`isochrone/data/countries.csv`), never code; this module only holds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocs:
    """`countries`: every known ISO 3166-1 alpha-2 code. `members`: bloc name -> its countries.

    Bloc names are upper case and never equal a country code, so that one axis may mix both.
    """

    countries: frozenset[str]
    members: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        for name, members in self.members.items():
            assert name not in self.countries, f"bloc {name} has the name of a country"
            assert members <= self.countries, f"bloc {name} lists unknown countries"

    def countries_of(self, term: str) -> frozenset[str]:
        """Countries that one term of an axis stands for; empty for a term that is unknown."""
        if term in self.countries:
            return frozenset((term,))
        return self.members.get(term, frozenset())
