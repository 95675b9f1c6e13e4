"""The fast twin: requests, replicas and sites on an event heap, in virtual time."""
