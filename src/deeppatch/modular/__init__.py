"""CNNSplitter and GradSplitter: a module of few kernels for each class, and a weak model patched with one."""
