"""A whole cluster in one thread: the real stores, tiers, ledgers and readers under a scheduler that draws from a seed.

After the deterministic simulations of FoundationDB (Zhou et al., "FoundationDB: A Distributed Unbundled Transactional
Key Value Store", SIGMOD 2021, section 4) and TigerBeetle. Time is virtual; the network, the disks and the source are
made up, and fail as the seed says. The same seed gives the same run, on any machine.

    python -m raycache.testing.simulation --seed 7           one run, with its trace
    python -m raycache.testing.simulation --seeds 100000     many, until one fails

Needs the package ``greenlet`` (``pip install raycache[simulation]``).
"""
