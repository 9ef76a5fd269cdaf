"""Tables and pictures of results that are there already; nothing here trains."""
