"""Reads the settings of a cloud's gateway, and what no setting of them tells alone."""

from pathlib import Path

from isochrone.core.errors import InvalidInput
from isochrone.gateway.settings import GatewaySettings, contradictions
from isochrone.wiring.settings import load


def load_gateway(path: Path) -> GatewaySettings:
    """Raises InvalidInput with every problem found."""
    settings = load(path, GatewaySettings)
    problems = contradictions(settings)
    if problems:
        raise InvalidInput([f"{path}: {problem}" for problem in problems])
    return settings
