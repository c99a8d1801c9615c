//! Warren beside other VPNs on the same link.
