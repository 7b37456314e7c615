//! What is done with one input of each fuzz target; `tests/corpus.rs` does the same on stable Rust.
//!
//! Library of the fuzz targets' package, and a module of that test. A body panics when a property
//! does not hold. Besides "no input makes it panic" these are: what was read is written and read again
//! as the same, and reading takes memory in proportion.

mod chain;
mod channel;
#[path = "../../sim/clock.rs"]
#[expect(dead_code, reason = "no clock is wrong here")]
mod clock;
mod disk;
mod engine;
mod gateway;
mod http;
mod input;
mod members;
mod memory;
mod others;
mod session;
mod statement;
mod text;
mod tls;
mod wire;

/// What is done with an input.
type Body = fn(&[u8]);

/// One target: its name, which is also that of its corpus, and its bodies.
///
/// Small parsers share a target: the first byte says which of them gets the rest.
pub(crate) type Target = (&'static str, &'static [Body]);

/// Every target; each has a file in `fuzz_targets` and a folder in `corpus`.
pub(crate) const TARGETS: &[Target] = &[
    ("chain", &[chain::chain]),
    ("channel", &[channel::channel]),
    ("dns", &[wire::dns]),
    ("engine", &[engine::engine]),
    ("gateway", &[gateway::gateway]),
    ("http", &[http::api, http::stream]),
    ("message", &[wire::control, wire::frame]),
    ("packet", &[wire::packet]),
    ("session", &[session::session]),
    ("settings", &[disk::config, disk::resolv_conf]),
    ("state", &[disk::state]),
    ("statement", &[statement::statement]),
    ("stun", &[wire::stun]),
    ("text", &[text::text, text::token]),
    ("tls", &[tls::certificate, tls::key]),
];

/// Gives one input to the target called `name`.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, bodies) = target.expect("a target of the list");
    match (bodies, data) {
        ([body], _) => body(data),
        (bodies, [first, rest @ ..]) => bodies[usize::from(*first) % bodies.len()](rest),
        (_, []) => {}
    }
}

/// Runs `body` on a thread of its own: the simulated clock is per thread, and libFuzzer, which looks
/// at the clock too, keeps the real one.
fn on_a_thread(body: impl FnOnce() + Send) {
    let done = std::thread::scope(|scope| scope.spawn(body).join());
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}
