"""The names of patches and routers that options and messages use; nothing here imports torch."""

# kinds of unit that a patch puts in place of a convolution
UNITS = ("replace", "crtunit")
# how a network is corrected: by a patch, or by training all of its parameters
CORRECTIONS = ("patch", "finetune")
# how a switched model decides between clean and patched maps
ROUTERS = ("probe", "flips")
