"""Our models -> other runtimes' forms, one file for each."""
