//! How settings become what engine and data plane understand.

use std::io;

use tokio::sync::mpsc;

use crate::config::{
    DataplaneSettings, MAX_WORKERS, NodeConfig, NodeSettings, PathMode, PathSettings, SuiteChoice,
};
use crate::dataplane::{self, DataplaneConfig, DataplaneHandle, FromWorker};
use crate::engine::{Engine, path::Mode};
use crate::node::driver::now;
use crate::os::{cpu, udp::UdpPort};
use crate::wire::channel::{Suite, Suites};

/// Has the engine work as the settings say.
pub(super) fn engine(engine: &mut Engine, config: &NodeConfig) {
    engine.set_frame_ids(dataplane::frame_ids);
    work_by(engine, &config.path, config.suite);
}

/// The same while it runs, for what may change then.
pub(super) fn again(engine: &mut Engine, settings: &NodeSettings) {
    work_by(engine, &settings.path, settings.channel.suite);
}

fn work_by(engine: &mut Engine, path: &PathSettings, suite: SuiteChoice) {
    engine.set_path_mode(path_mode(path.mode), now());
    engine.set_stun_servers(&path.stun, now());
    engine.set_suites(suites(suite));
}

/// Tells whether the router is to be asked: peers are told no address of ours in the other modes.
pub(super) const fn wants_mapping(path: &PathSettings) -> bool {
    matches!(path.mode, PathMode::Auto | PathMode::Direct) && path.port_mapping
}

const fn path_mode(mode: PathMode) -> Mode {
    match mode {
        PathMode::Auto => Mode::Auto,
        PathMode::Direct => Mode::Direct,
        PathMode::Hidden => Mode::Hidden,
        PathMode::Relay => Mode::Relay,
    }
}

/// Starts the threads that carry packets.
pub(super) fn start_workers(
    config: &NodeConfig,
    udp: Vec<UdpPort>,
) -> io::Result<(DataplaneHandle, mpsc::Receiver<FromWorker>)> {
    if !config.offload {
        udp.iter().for_each(UdpPort::forbid_offload);
    }
    dataplane::start(DataplaneConfig {
        udp,
        workers: workers(config.dataplane),
        is_realtime: config.dataplane.realtime,
    })
}

/// Returns how many threads carry packets.
pub(super) fn workers(settings: DataplaneSettings) -> usize {
    let most = usize::from(MAX_WORKERS);
    let wanted = settings.workers.map(usize::from);
    wanted.unwrap_or_else(cpu::count).clamp(1, most)
}

fn suites(choice: SuiteChoice) -> Suites {
    match choice {
        SuiteChoice::Auto if cpu::has_aes() => {
            Suites::of(&[Suite::Aes256Gcm, Suite::ChaCha20Poly1305])
        }
        SuiteChoice::Auto | SuiteChoice::ChaCha20Poly1305 => Suites::of(&[Suite::ChaCha20Poly1305]),
        SuiteChoice::Off => Suites::NONE,
    }
}
