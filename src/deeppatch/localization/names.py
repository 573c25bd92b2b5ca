"""The names of methods and sides that options and messages use; nothing here imports torch."""

# scored by an ablation of each filter, and estimated in one pass over the images
EXACT_METHODS = ("perfloss", "featswap")
ESTIMATED_METHODS = ("taylor", "activation")
# what rank_filters accepts
METHODS = (*EXACT_METHODS, *ESTIMATED_METHODS, "random")
# what the option -f accepts; ratioestim estimates how many filters to patch
RANKINGS = (*EXACT_METHODS, *ESTIMATED_METHODS, "ratioestim")
# which part of a ranking is patched
SIDES = ("front", "rear", "random")
