"""Test-time adaptation, to be compared with a repair: methods that adapt a network to the images it classifies."""
