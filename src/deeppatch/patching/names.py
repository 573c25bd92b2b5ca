"""The names of patches and routers that options and messages use; nothing here imports torch."""

# kinds of units that replace a convolution
UNITS = ("replace", "crtunit")
# how a network is corrected: by a patch, or by training all of its parameters
CORRECTIONS = ("patch", "finetune")
# how a switched model decides between original and patched network
ROUTERS = ("probe", "flips")
