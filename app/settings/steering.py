"""The settings of steering."""

from typing import Annotated

from pydantic import Field

from app.settings.section import Section


class SteeringSettings(Section):
    """The shipped steering concepts, and when to train concepts."""

    concepts: str = "configs/concepts"
    """Directory of the shipped concepts, one YAML file each. The default directory may be missing."""
    train_at_start: bool = True
    """True: train all concepts while the engine is idle. False: train each when a request first names it."""
    questions: Annotated[int, Field(ge=0, le=20)] = 20
    """How many neutral questions the model answers in a training. Fewer are faster, and make the strengths
    less exact. 0: no answers, so the strengths depend on the examples only."""
    refine: bool = False
    """True: trainings refine the directions of concepts by gradients. Most concepts become stronger at the
    same fluency, and trainings longer."""
