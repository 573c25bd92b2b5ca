"""The names of methods and sides that options and messages use; nothing here imports torch."""

# methods that ablate each filter, and methods that estimate all scores in one pass over the images
EXACT_METHODS = ("perfloss", "featswap")
ESTIMATED_METHODS = ("taylor", "activation")
# the methods of rank_filters
METHODS = (*EXACT_METHODS, *ESTIMATED_METHODS, "random")
# the values of the option -f; ratioestim estimates how many filters to patch
RANKINGS = (*METHODS, "ratioestim")
# which part of a ranking is patched
SIDES = ("front", "rear", "random")
