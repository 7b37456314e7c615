#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agentnet_fuzz::run("channel", data));
