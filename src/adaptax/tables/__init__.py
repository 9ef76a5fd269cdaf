"""Estimators for tables whose rows belong to groups."""
