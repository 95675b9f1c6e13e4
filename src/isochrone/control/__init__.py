"""Control: intent and book of record; publishes the signed view, never on the request path."""
