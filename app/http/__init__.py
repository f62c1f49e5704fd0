"""HTTP below the routes: connections, middleware, authentication, bodies, events, OpenAPI. Knows no model."""
