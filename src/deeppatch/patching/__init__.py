"""DeepPatch: correction units, patch files, the router and the switched model."""
