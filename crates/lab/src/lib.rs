//! The lab: namespaces, WAN emulator, scenarios, peer benchmarks
