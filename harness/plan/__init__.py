"""The planner: which method lets a model train within a memory budget; and models that users bring along."""
