"""What is recorded about each request, and where it goes: metrics, access log, traces. Changes no request."""
