"""Ways to compute a training step's gradients: one file, one method."""
