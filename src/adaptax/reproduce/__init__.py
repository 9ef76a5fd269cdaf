"""The reference experiments of docs/theory.md, section 10: computed, written as CSV, drawn, and put into words."""
