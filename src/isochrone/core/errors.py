"""Every error class of the product. Expected outcomes are values; these are failures with a code.

IsochroneError                 code, message; base of all that follow
|- InvalidInput                bad file, flag or field: all problems listed, nothing was done
|- Unavailable                 something outside does not answer just now; trying again may help
|  |- BusUnavailable           NATS is away or did not acknowledge in time
|  |  `- MessageTooLarge       it takes no message of this length; others go on
|  |- StoreUnavailable         PostgreSQL is away or refused the connection
|  `- EngineUnavailable        an engine did not start or does not answer
|- NotFound                    the named thing does not exist (for this tenant)
|- Conflict                    the same idempotency key with another body, a name already taken
|  |- TooMuchMoney             what was used and its prices come to more than the book holds
|  |- Closed                   the project or organisation was closed: nothing new is made in it
|  `- LastOwner                an organisation that is open keeps an owner
|- Forbidden                   the caller may not do this
|- TooManyTries                something was tried too often; it says how long to wait
`- Untrusted                   a signature, token or message code is wrong or too old
"""

from collections.abc import Sequence


class IsochroneError(Exception):
    """A failure with a stable `code` for machines and a message for people."""

    code = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(IsochroneError):
    """Input that cannot be accepted; `problems` holds every fault found, at least one."""

    code = "invalid_input"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Unavailable(IsochroneError):
    """Something outside this process does not answer; a later try may succeed."""

    code = "unavailable"


class BusUnavailable(Unavailable):
    """NATS is away, or did not acknowledge before the deadline."""

    code = "bus_unavailable"


class MessageTooLarge(BusUnavailable):
    """One message is longer than NATS takes; it is never taken as it is, and others are."""

    code = "message_too_large"


class StoreUnavailable(Unavailable):
    """PostgreSQL is away or closed the connection."""

    code = "store_unavailable"


class EngineUnavailable(Unavailable):
    """An engine did not start, died, or does not answer."""

    code = "engine_unavailable"


class NotFound(IsochroneError):
    """The named thing does not exist, or not for this tenant."""

    code = "not_found"


class Conflict(IsochroneError):
    """A name is taken, or an idempotency key was used before with another body."""

    code = "conflict"


class TooMuchMoney(Conflict):
    """Usage and prices that are both on record come to more money than the book holds."""

    code = "too_much_money"


class Closed(Conflict):
    """The project or its organisation is closed; what it has stays readable."""

    code = "closed"


class LastOwner(Conflict):
    """It would leave an organisation without an owner; appoint another first."""

    code = "last_owner"


class Forbidden(IsochroneError):
    """The caller is known but may not do this."""

    code = "forbidden"


class Untrusted(IsochroneError):
    """A signature, message code or token is wrong, missing or expired."""

    code = "untrusted"


class TooManyTries(IsochroneError):
    """It was tried too often; another try is allowed after `wait_s` seconds."""

    code = "too_many_tries"

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s
