"""The command line: parse, make a configuration, call the library. Nothing imports this package."""
