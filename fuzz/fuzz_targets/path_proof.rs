#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::path_proof::path_proof(data));
