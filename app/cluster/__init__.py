"""Places, watches and scales Tiller's processes on the nodes of a Ray cluster. Ray carries no tokens."""
