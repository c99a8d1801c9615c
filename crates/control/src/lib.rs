//! Warren's identity, certificates, join codes and descriptors (pure)
