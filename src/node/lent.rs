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

use crate::os::dns;

/// What a program's namespace has for the node.
#[derive(Debug)]
pub struct Lent {
    /// Its name in that namespace.
    pub name: String,
    pub device: Device,
    /// Where names are asked for: UDP and TCP of each place, nonblocking.
    pub names: Vec<(UdpSocket, TcpListener)>,
    /// Whether the program has the host's network too, and foreign names are the host's to answer.
    pub is_shared: bool,
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
        let asker = (local, lent.is_shared);
        let resolver = answer(handle, (membership, suffix), asker, sockets);
        resolvers.push(resolver.map_err(DeviceError::Names)?);
    }
    info!(device = %lent.name, "Network device of a program ready");
    Ok((lent.name, resolvers))
}

/// Answers what the agent may know, and nothing else where its program has no other network.
fn answer(
    handle: &Handle,
    (membership, suffix): (&Membership, &Suffix),
    (asker, is_shared): (OverlayIp, bool),
    (udp, tcp): (UdpSocket, TcpListener),
) -> std::io::Result<Resolver> {
    let search = search(membership, suffix);
    let (upstream, foreign) = if is_shared {
        (Upstream::Forward(dns::nameservers()), dns::search())
    } else {
        (Upstream::Refuse, Vec::new())
    };
    let settings = Settings {
        listen: udp.local_addr()?,
        asker,
        zone: Zone {
            suffix: suffix.clone(),
            prefixes: vec![membership.prefix],
            retries: Zone::retries(&search, &foreign),
        },
        upstream,
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
