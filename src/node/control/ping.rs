use std::{
    io::ErrorKind,
    net::{SocketAddr, SocketAddrV6},
    time::Duration,
};

use tokio::net::TcpSocket;

use crate::engine::path::Path;
use crate::id::OverlayIp;
use crate::node::{
    control::{path_kind, paths},
    driver::{Core, now},
    running::Node,
};
use crate::os::clock;
use crate::wire::api::{
    local::{PingOutcome, PingReply, PingRequest},
    problem::{Code, Problem},
};

/// Longest wait a caller may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Probes another agent once: through the session, or by opening a TCP connection.
pub(super) async fn ping(node: &Node, ping: PingRequest) -> Result<PingReply, Problem> {
    let wait = Duration::from_millis(ping.timeout_ms).min(MAX_WAIT);
    let (agent, wanted) = (ping.agent, ping.name);
    let found = node.handle.call(move |core| {
        let (local, full) = paths::target(core, agent.as_deref(), &wanted)?;
        let address = core.engine.by_name(local, &full, now());
        let address = address.ok_or_else(|| paths::nobody(&full))?;
        Ok::<_, Problem>((local, full.to_string(), address))
    });
    let (local, name, address) = found.await??;
    let (outcome, rtt, path) = match ping.tcp {
        Some(port) => {
            let (outcome, rtt) = connect(local, address, port, wait).await;
            let current = move |core: &mut Core| core.engine.path(local, address, now());
            (outcome, rtt, node.handle.call(current).await?)
        }
        None => probe(node, local, address, wait).await?,
    };
    Ok(PingReply {
        name,
        address,
        outcome,
        rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        path: path.filter(|_| rtt.is_some()).map(path_kind),
        hint: outcome.hint().map(str::to_owned),
    })
}

/// Probes by echo; tells which way echo and answer took.
async fn probe(
    node: &Node,
    local: OverlayIp,
    peer: OverlayIp,
    wait: Duration,
) -> Result<(PingOutcome, Option<Duration>, Option<Path>), Problem> {
    if local == peer {
        return Ok((PingOutcome::Answered, Some(Duration::ZERO), None));
    }
    let sent = node.handle.call(move |core| {
        let id = core.engine.probe(local, peer, now())?;
        Some(core.await_pong(id))
    });
    let answered = sent.await?.ok_or_else(|| Problem::new(Code::NotFound))?;
    match tokio::time::timeout(wait, answered).await {
        Ok(Ok((rtt, path))) => Ok((PingOutcome::Answered, Some(rtt), Some(path))),
        Ok(Err(_)) | Err(_) => Ok((PingOutcome::NoAnswer, None, None)),
    }
}

async fn connect(
    local: OverlayIp,
    peer: OverlayIp,
    port: u16,
    wait: Duration,
) -> (PingOutcome, Option<Duration>) {
    let at = |address: OverlayIp, port| SocketAddr::V6(SocketAddrV6::new(address.ip(), port, 0, 0));
    let since = clock::now();
    let connecting = async {
        let socket = TcpSocket::new_v6()?;
        socket.bind(at(local, 0))?;
        socket.connect(at(peer, port)).await
    };
    let connected = tokio::time::timeout(wait, connecting).await;
    let rtt = clock::now().duration_since(since);
    match connected {
        Ok(Ok(_stream)) => (PingOutcome::Open, Some(rtt)),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            (PingOutcome::Refused, Some(rtt))
        }
        Ok(Err(_)) | Err(_) => (PingOutcome::NoAnswer, None),
    }
}
