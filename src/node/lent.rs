//! An agent whose device is in the network namespace of a program, and not of the host.

use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
};

use tracing::info;

use crate::dataplane::{Device, Realm};
use crate::engine::{membership::Membership, names::Zone};
use crate::id::{OverlayIp, Suffix};
use crate::node::{
    agent::DeviceError,
    driver::{Core, Handle},
    names::Names,
    resolver::{Resolver, Settings, Upstream},
};

/// What a program's namespace has for the node.
#[derive(Debug)]
pub struct Lent {
    /// Its name in that namespace.
    pub name: String,
    pub device: Device,
    /// Where names are asked for: UDP and TCP of each place, nonblocking.
    pub names: Vec<(UdpSocket, TcpListener)>,
}

/// Hands the device to the data plane and answers names; returns the device's name and what answers.
pub(super) async fn take_in(
    handle: &Handle,
    (membership, suffix): (&Membership, &Suffix),
    (local, realm): (OverlayIp, Realm),
    lent: Lent,
) -> Result<(String, Vec<Resolver>), DeviceError> {
    let plane = handle
        .call(move |core: &mut Core| {
            core.set_realm(local, realm);
            core.dataplane().clone()
        })
        .await?;
    let added = plane.add_tun(local, realm, lent.device).await;
    added.map_err(DeviceError::Watch)?;
    let mut resolvers = Vec::new();
    for sockets in lent.names {
        let resolver = answer(handle, (membership, suffix), local, sockets);
        resolvers.push(resolver.map_err(DeviceError::Names)?);
    }
    info!(device = %lent.name, "Network device of a program ready");
    Ok((lent.name, resolvers))
}

/// Answers what the agent may know, and nothing else: its program has no other network to ask in.
fn answer(
    handle: &Handle,
    (membership, suffix): (&Membership, &Suffix),
    asker: OverlayIp,
    (udp, tcp): (UdpSocket, TcpListener),
) -> std::io::Result<Resolver> {
    let search = search(membership, suffix);
    let settings = Settings {
        listen: udp.local_addr()?,
        asker,
        zone: Zone {
            suffix: suffix.clone(),
            prefixes: vec![membership.prefix],
            retries: Zone::retries(&search, &[]),
        },
        upstream: Upstream::Refuse,
    };
    let sockets = (udp.try_into()?, tcp.try_into()?);
    let names = Arc::new(Names::of_one(handle.clone()));
    Resolver::serve(settings, sockets, names)
}

/// Returns where the short names of an agent's peers are looked up.
pub(super) fn search(membership: &Membership, suffix: &Suffix) -> Vec<String> {
    let name = membership.name().into_iter();
    name.map(|name| format!("{}.{suffix}", name.network()))
        .collect()
}
