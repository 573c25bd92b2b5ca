"""The names of the methods that correct a whole network; nothing here imports torch."""

# the values of the option -c beside patch: each leaves a network, or what makes one of the base
METHODS = ("finetune", "interpolate", "norms", "bank", "surgical")
# how `interpolate` gets the running statistics of a network between two
STATISTICS = ("linear", "again", "keep")
# what a row of `bank` is for: a level of the degradation, or all levels of a type
CONDITIONS = ("level", "type")
