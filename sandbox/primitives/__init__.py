"""The kernel's calls, thin and exact: names and argument order of the man pages, no policy."""
