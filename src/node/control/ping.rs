use std::{
    io::ErrorKind,
    net::{SocketAddr, SocketAddrV6},
    time::Duration,
};

use tokio::net::TcpSocket;

use crate::id::OverlayIp;
use crate::node::{
    control::{choose, member_name, path_kind},
    driver::now,
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
        let local = choose(core, agent.as_deref())?;
        let membership = core.engine.membership(local);
        let membership = membership.ok_or_else(|| Problem::new(Code::NotFound))?;
        let member = member_name(membership, &wanted)?;
        let own = core
            .engine
            .name(local)
            .ok_or_else(|| Problem::new(Code::NotFound))?;
        let full = member.full(own.network(), &membership.suffix.clone());
        let time = now();
        let address = core.engine.by_name(local, &full, time);
        let nobody = || {
            let what = format!("{full} is not known here, or there is no trust with it");
            Problem::with(Code::NotFound, what)
        };
        Ok::<_, Problem>((local, full.to_string(), address.ok_or_else(nobody)?))
    });
    let (local, name, address) = found.await??;
    let (outcome, rtt) = match ping.tcp {
        Some(port) => connect(local, address, port, wait).await,
        None => probe(node, local, address, wait).await?,
    };
    let path = node
        .handle
        .call(move |core| core.engine.path(local, address, now()));
    let path = path.await?.map(path_kind);
    Ok(PingReply {
        name,
        address,
        outcome,
        rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        path: path.filter(|_| rtt.is_some()),
        hint: outcome.hint().map(str::to_owned),
    })
}

async fn probe(
    node: &Node,
    local: OverlayIp,
    peer: OverlayIp,
    wait: Duration,
) -> Result<(PingOutcome, Option<Duration>), Problem> {
    if local == peer {
        return Ok((PingOutcome::Answered, Some(Duration::ZERO)));
    }
    let sent = node.handle.call(move |core| {
        let id = core.engine.probe(local, peer, now())?;
        Some(core.await_pong(id))
    });
    let answered = sent.await?.ok_or_else(|| Problem::new(Code::NotFound))?;
    match tokio::time::timeout(wait, answered).await {
        Ok(Ok(rtt)) => Ok((PingOutcome::Answered, Some(rtt))),
        Ok(Err(_)) | Err(_) => Ok((PingOutcome::NoAnswer, None)),
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
