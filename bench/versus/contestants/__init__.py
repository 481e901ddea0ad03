"""One module for each contestant, run by its own Python: `python -m contestants.NAME WORKLOAD PLAN`."""
