"""Running a suite: what is left to do, in which order, by whom, and what a person sees of it."""
