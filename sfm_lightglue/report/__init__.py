"""Pictures of what a run has found."""
