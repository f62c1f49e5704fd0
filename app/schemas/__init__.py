"""The API's data types: requests as pydantic models, answers as msgspec structs. No behaviour."""
