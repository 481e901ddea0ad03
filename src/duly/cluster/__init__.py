"""A whole cluster on one machine, for trying and testing: real PostgreSQL, real NATS, every role its own process.

cluster.py          starts it in order, keeps it going, stops it in order
home.py             its directory: what it is, and its secrets
control.py          how it is asked for things while it runs
shard.py            the servers of a shard: who takes writes, and the standby (decision 0020)
supervision.py      one process: started, watched, restarted with a growing pause, stopped
tether.py           the first code of each process: its end is tied to the supervisor's
postgres_server.py  nats_server.py  the servers, from wheels
"""
