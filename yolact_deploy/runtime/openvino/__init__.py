"""Exported models in OpenVINO."""
