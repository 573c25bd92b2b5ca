"""The names of the methods that correct a whole network; nothing here imports torch."""

# the methods of other papers that DeepPatch was compared with
PEERS = ("sensei", "apricot", "robot", "gini", "augmix")
# the values of the option -c beside patch: each leaves a network, or what makes one of the base
METHODS = ("finetune", "interpolate", "norms", "bank", "surgical", *PEERS)
# the value of -c that changes a patch that is there: its statistics
STATISTICS_OF_PATCH = "statistics"
# how `interpolate` gets the running statistics of a network between two
STATISTICS = ("linear", "again", "keep")
# what a row of `bank` is for: a level of the degradation, or all levels of a type
CONDITIONS = ("level", "type")
# how `robot` chooses images by their first-order loss
SELECTIONS = ("best", "multisection")
# of `apricot`: 1 moves towards models that are right and away from those that are wrong, 2 and 3 do one of the two
STRATEGIES = (1, 2, 3)
