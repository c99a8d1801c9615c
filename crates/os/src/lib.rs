//! Warren's operating-system seam: the only unsafe code and the only system calls
