//! Laboratories of network namespaces.
