//! Agents' own traffic in the clear, for who may change the node: `agentnet capture`.

use std::collections::BTreeMap;

use futures_util::stream::{BoxStream, StreamExt, unfold};

use crate::dataplane::{Capture, Seen, Tapped, Wanted, Way};
use crate::id::{OverlayIp, UnixTime};
use crate::node::control::choose;
use crate::node::control::paths::{nobody, target};
use crate::node::driver::{Core, now};
use crate::node::running::Node;
use crate::os::clock;
use crate::wire::api::local::CaptureQuery;
use crate::wire::api::problem::{Code, Problem};
use crate::wire::pcapng::{Packet, Writer};

/// Packets that are handed on at once.
const BURST: usize = 64;

/// Pieces of a pcapng file, as packets come.
pub type Pieces = BoxStream<'static, Vec<u8>>;

/// What a capture has become so far.
struct Running {
    capture: Capture,
    writer: Writer,
    names: BTreeMap<OverlayIp, String>,
    /// Packets still to come; None for no end.
    left: Option<u64>,
    has_begun: bool,
}

/// Begins a capture, which ends when the stream is dropped.
pub(super) async fn begin(node: &Node, query: CaptureQuery) -> Result<Pieces, Problem> {
    let left = query.count;
    let asked = node.handle.call(move |core| {
        let (wanted, names) = wanted(core, &query)?;
        let capture = core.capture(wanted).ok_or_else(|| {
            let mut problem = Problem::with(Code::NoRoom, "too many captures at once");
            "end another agentnet capture".clone_into(&mut problem.hint);
            problem
        })?;
        Ok::<_, Problem>((capture, names))
    });
    let (capture, names) = asked.await??;
    let running = Running {
        capture,
        writer: Writer::default(),
        names,
        left,
        has_begun: false,
    };
    Ok(unfold(running, next).boxed())
}

type Known = (Wanted, BTreeMap<OverlayIp, String>);

fn wanted(core: &Core, query: &CaptureQuery) -> Result<Known, Problem> {
    let agent = query.agent.as_deref();
    let wanted = match &query.peer {
        Some(peer) => {
            let (local, name) = target(core, agent, peer)?;
            let peers = core.engine.peers(local, now());
            let found = peers.into_iter().find(|peer| peer.name == name);
            Wanted {
                local: Some(local),
                peer: Some(found.ok_or_else(|| nobody(&name))?.address),
            }
        }
        None => Wanted {
            local: agent.map(|_| choose(core, agent)).transpose()?,
            peer: None,
        },
    };
    let names = core.engine.locals();
    let names = names.filter_map(|local| Some((local, core.engine.name(local)?.to_string())));
    Ok((wanted, names.collect()))
}

async fn next(mut running: Running) -> Option<(Vec<u8>, Running)> {
    let mut piece = Vec::new();
    if !std::mem::replace(&mut running.has_begun, true) {
        // At once, so that the caller knows that it is heard.
        running.writer.begin(&mut piece);
        return Some((piece, running));
    }
    let mut found = match running.left {
        Some(0) => return None,
        Some(_) | None => Some(running.capture.next().await?),
    };
    for _ in 0..BURST {
        let Some((packet, lost)) = found else { break };
        running.add(packet, lost, &mut piece);
        found = match running.left {
            Some(0) => None,
            Some(_) | None => running.capture.try_next(),
        };
    }
    Some((piece, running))
}

impl Running {
    fn add(&mut self, packet: Tapped, lost: u64, piece: &mut Vec<u8>) {
        let name = self.names.get(&packet.local).cloned();
        let packet = Packet {
            interface: name.unwrap_or_else(|| packet.local.to_string()),
            nanos: nanos(
                clock::unix(),
                clock::now().saturating_duration_since(packet.at),
            ),
            is_inbound: packet.way == Way::In,
            comment: packet.dropped.map(|reason| format!("dropped: {reason}")),
            lost,
            bytes: packet.bytes,
        };
        self.writer.packet(&packet, piece);
        self.left = self.left.map(|left| left.saturating_sub(1));
    }
}

impl Core {
    /// Begins to show packets; None while too many capture already.
    pub fn capture(&mut self, wanted: Wanted) -> Option<Capture> {
        let (capture, tap) = self.dataplane().capture(wanted)?;
        self.taps.add(tap);
        Some(capture)
    }

    /// Shows what the engine dropped to those who capture.
    pub(super) fn show_dropped(&mut self) {
        while let Some(dropped) = self.engine.poll_dropped() {
            self.taps.show(Seen {
                at: clock::now(),
                local: dropped.local,
                way: Way::Out,
                dropped: Some(dropped.reason),
                bytes: &dropped.bytes,
            });
        }
        self.engine.keep_dropped(!self.taps.is_empty());
    }
}

/// Returns when something was that is `ago` ago, in nanoseconds.
fn nanos(unix: UnixTime, ago: std::time::Duration) -> u64 {
    let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
    unix.as_millis()
        .saturating_mul(1_000_000)
        .saturating_sub(ago)
}
