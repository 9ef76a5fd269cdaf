"""The reference experiments of docs/theory.md, section 10: each writes a CSV, figures and a page."""
