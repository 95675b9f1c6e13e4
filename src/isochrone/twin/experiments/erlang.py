"""What is known exactly of a pool of servers: how likely one waits (Erlang's C formula)."""


def waiting_probability(servers: int, utilisation: float) -> float:
    """Of M/M/c at this utilisation, from 0 to below 1: the probability that a request waits."""
    offered = servers * utilisation
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1.0 - utilisation * (1.0 - blocked))


def attainable_utilisation(servers: int, waits: float) -> float:
    """The largest utilisation at which at most this part waits."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if waiting_probability(servers, middle) <= waits:
            low = middle
        else:
            high = middle
    return low
