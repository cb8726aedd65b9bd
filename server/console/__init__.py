"""The operator's console: a process of its own over the coordinator's database and run directories."""
