"""A method and a model for snnbench, as a third party would write them."""
