"""The names of patches and routers that options and messages use; nothing here imports torch."""

# kinds of units that replace a convolution
UNITS = ("replace", "crtunit")
# where new filters start: at the original ones, or drawn, as in the published code
INITS = ("original", "fresh")
# what a patch is trained on: half clean and half degraded images, clean ones, or the worst versions that sensei finds
STREAMS = ("degraded", "clean", "sensei")
# DeepPatch's published -p, and the options that it stands for
PUBLISHED_PATCHES = {
    "DP": {"crt_type": "replace"}, "DC": {"crt_type": "crtunit"},
    "DP-s": {"crt_type": "replace", "noise_type": "spatial"},
    "DP-SS": {"crt_type": "replace", "noise_type": "spatial", "train_on": "sensei"},
    "SS-DP": {"crt_type": "replace", "noise_type": "spatial", "train_on": "clean"},
}  # fmt: skip
# a router whose answer is the mean of two networks' probabilities
AVERAGE = "average"
# how a switched model decides between the original network and the others
ROUTERS = ("probe", "flips", "benefit", "benefit-both", AVERAGE)
# of these, those that read the answers of all networks, so that every network runs for every sample
READ_ANSWERS = ("benefit-both", AVERAGE)
# what stands for a name where a router's file is given
GIVEN = "file"
