"""What goes over the wire: requests as pydantic models, answers as msgspec structs. No behaviour."""
