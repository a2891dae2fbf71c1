"""The project's own lab: figures of its README and RESULTS.md. Not in the wheel."""
