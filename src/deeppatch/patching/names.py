"""The names of routers, without a heavy import."""

ROUTERS = ("probe", "flips")
