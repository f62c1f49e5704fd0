"""Records what happens to each request, for metrics, access log and traces. Changes no request."""
