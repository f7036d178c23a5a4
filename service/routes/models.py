"""The trained models."""

from fastapi import APIRouter

from service.cards import make_card
from service.routes.dependencies import ModelNameInPath, Registry, Store, errors
from service.schemas import DeleteResponse, ModelCard, ModelList, ModelSummary

router = APIRouter(tags=["models"])


@router.get("/models", responses=errors(400, 401))
def list_models(store: Store) -> ModelList:
    """List the model files: `loaded` in memory, `saved` on disk, `corrupt`, or `unsafe` (not written by GRPO)."""
    return ModelList(models=[ModelSummary(name=name, status=status) for name, status in store.list_models()])


@router.get("/models/{model_name}", responses=errors(400, 401, 404, 409, 422))
def describe_model(model_name: ModelNameInPath, store: Store) -> ModelCard:
    """Describe a model by its file: spaces, environment, reward, hyperparameters, steps, evaluation, versions."""
    return make_card(store, model_name)


@router.delete("/models/{model_name}", responses=errors(400, 401, 403, 404, 409, 422))
def delete_model(model_name: ModelNameInPath, registry: Registry) -> DeleteResponse:
    """Delete a model from memory and disk."""
    registry.delete_model(model_name)
    return DeleteResponse(message="Model deleted", model_name=model_name)
