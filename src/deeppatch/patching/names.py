"""The names of patches and routers that options and messages use; nothing here imports torch."""

# kinds of units that replace a convolution
UNITS = ("replace", "crtunit")
# how a switched model decides between original and patched network
ROUTERS = ("probe", "flips")
