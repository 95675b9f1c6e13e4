"""GET /v1/models and /v1/models/{id}: the models that some site allowed to the key serves."""

from collections.abc import Sequence

import msgspec

from isochrone.core.ids import PolicyId
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.model import Model

PATH = "/v1/models"


def allowed_models(
    table: RoutingTable, policy_id: PolicyId, narrowing: Narrowing | None = None
) -> Sequence[Model]:
    """Models of the view that this policy, as the request narrows it, can use; by name."""
    models = table.view.models
    return [models[name] for name in table.models(policy_id, narrowing)]


def list_body(models: Sequence[Model]) -> bytes:
    """OpenAI's list of models."""
    return msgspec.json.encode({"object": "list", "data": [_object(each) for each in models]})


def model_body(model: Model) -> bytes:
    """OpenAI's model object."""
    return msgspec.json.encode(_object(model))


def _object(model: Model) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at // 1_000_000_000,
        "owned_by": "isochrone",
    }
