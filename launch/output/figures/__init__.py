"""The figures of a run, RUN/figures/*.png: losses, scores, and what only the owner of the images may draw."""

from suture.launch.output.figures.curves import metrics_by_round, training_loss
from suture.launch.output.figures.pictures import activations, bottom_stages, segmentation

__all__ = ["activations", "bottom_stages", "metrics_by_round", "segmentation", "training_loss"]
