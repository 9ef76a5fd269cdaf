"""Tables and pictures of results that exist already; nothing here trains."""
