// nanobind's own runtime, compiled with the extension. A file of ours includes it because setuptools
// accepts no absolute path (a package in site-packages) as a source.
#include "nb_combined.cpp"
