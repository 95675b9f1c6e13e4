"""The console: web pages over the Control API, with the session of whoever is signed in."""
