"""A run without its weights: what a checkpoint, a task and some GPUs would come to, and whether that would work."""

from sttm_lmms.rehearsal.devices import spread
from sttm_lmms.rehearsal.files import CheckpointFiles, gather
from sttm_lmms.rehearsal.generation import InForce, in_force
from sttm_lmms.rehearsal.prompt import Rendered, render_prompt
from sttm_lmms.rehearsal.video import Sight, sight_of

__all__ = [
    "CheckpointFiles",
    "InForce",
    "Rendered",
    "Sight",
    "gather",
    "in_force",
    "render_prompt",
    "sight_of",
    "spread",
]
