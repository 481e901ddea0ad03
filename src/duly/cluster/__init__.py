"""A whole cluster on one machine, for trying and testing: real PostgreSQL, real NATS, every role its own process.

members.py          what a cluster has: names, addresses, settings of its roles
cluster.py          starts it in order, keeps it going, stops it in order
supervision.py      one process: started, watched, restarted with a growing pause, stopped
tether.py           the first code of each process: its end is tied to the supervisor's
postgres_server.py  nats_server.py  the servers, from wheels
"""
