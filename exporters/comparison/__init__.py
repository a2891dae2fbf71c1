"""Two artifacts side by side."""
