"""Loss functions that several systems share. Pure; values per example, never a mean."""
