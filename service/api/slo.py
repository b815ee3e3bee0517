"""`GET /slo`: the objectives, and how well this process has kept them."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from observability.slo import Availability, Objective, Samples, Saturation
from service.api.state import ServicesDep

router = APIRouter(tags=["operations"])


class ObjectiveView(BaseModel):
    """One objective, and the events since the process started."""

    name: str
    kind: str
    description: str
    objective: float
    threshold_seconds: float | None
    good: float
    total: float
    attainment: float | None = Field(description="good / total; null without any event.")
    budget_left: float | None = Field(description="Share of the allowed failures that is left; below 0: overspent.")
    is_met: bool | None = Field(description="null while there are too few events to tell.")

    @classmethod
    def of(cls, name: str, objective: Objective, samples: Samples, minimum_events: int) -> "ObjectiveView":
        """The JSON of one objective."""
        counts = objective.counts(samples)
        attainment = counts.attainment
        return cls(
            name=name,
            kind=objective.kind,
            description=objective.description,
            objective=objective.objective,
            threshold_seconds=None if isinstance(objective, Availability) else objective.threshold,
            good=counts.good,
            total=counts.total,
            attainment=attainment,
            budget_left=counts.budget_left(objective.objective),
            is_met=None if attainment is None or counts.total < minimum_events else attainment >= objective.objective,
        )


class ObjectivesView(BaseModel):
    """All objectives of a profile."""

    profile: str
    window_days: int
    minimum_events: int
    objectives: list[ObjectiveView]
    saturation: Saturation


@router.get("/slo", summary="The objectives, and how well this process has kept them")
async def slo(services: ServicesDep) -> ObjectivesView:
    """Since it started, by its own metrics. Requests of the probe do not count."""
    profile, objectives, samples = services.settings.slo_profile, services.objectives, services.indicators()
    return ObjectivesView(
        profile=profile,
        window_days=objectives.window_days,
        minimum_events=objectives.minimum_events,
        objectives=[
            ObjectiveView.of(name, each, samples, objectives.minimum_events)
            for name, each in objectives.profiles[profile].items()
        ],
        saturation=objectives.saturation,
    )
